# Finds a Python that the packages here are for, and lets install.py do the rest. Windows:
#   powershell -ExecutionPolicy Bypass -File install.ps1
$here = Split-Path -Parent $MyInvocation.MyCommand.Path
$pythons = Get-Content (Join-Path $here "pythons.txt") | Where-Object { $_ }
foreach ($version in $pythons) {
  if (Get-Command py -ErrorAction SilentlyContinue) {
    & py "-$version" -c "exit()" 2>$null
    if ($LASTEXITCODE -eq 0) { & py "-$version" (Join-Path $here "install.py") @args; exit $LASTEXITCODE }
  }
  if (Get-Command python -ErrorAction SilentlyContinue) {
    $found = & python -c "import sys; print(sys.version[:sys.version.index(chr(46), 2)])" 2>$null
    if ($found -eq $version) { & python (Join-Path $here "install.py") @args; exit $LASTEXITCODE }
  }
}
Write-Host "Install Python $($pythons -join ", ") first, or run: C:\path\to\python.exe install.py"
exit 2
