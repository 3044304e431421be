#!/bin/sh
# Finds a Python that the packages here are for, and lets install.py do the rest. Linux and macOS:  sh install.sh
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 1
for version in $(cat "$here/pythons.txt"); do
  for python in "python$version" python3 python; do
    if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
      exec "$python" "$here/install.py" "$@"
    fi
  done
done
echo "Install Python $(tr '\n' ' ' <"$here/pythons.txt")first, or run: /path/to/python install.py" >&2
echo "Python $(tr '\n' ' ' <"$here/pythons.txt")をインストールするか、/path/to/python install.py を実行してください。" >&2
exit 2
