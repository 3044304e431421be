"""Installs the course from this folder, without network: checksums, .venv, packages, a first trial.

    python3 install.py                 on Windows: py -3.12 install.py
    python3 install.py --into FOLDER   another place for .venv (default: this folder)
    python3 install.py --check         only compare the checksums

Standard library only; old Pythons can read it too, so that they can say what is needed.
"""

import hashlib
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def say(english, japanese):
    for line in (english, japanese):
        encoding = sys.stdout.encoding or "ascii"
        print(line.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def supported():
    with open(os.path.join(HERE, "pythons.txt")) as file:
        return file.read().split()


def damaged():
    """Names of files that are missing or differ from SHA256SUMS."""
    wrong = []
    with open(os.path.join(HERE, "SHA256SUMS"), encoding="utf-8") as file:
        for line in file:
            wanted, name = line.rstrip("\n").split("  ", 1)
            digest = hashlib.sha256()
            try:
                with open(os.path.join(HERE, *name.split("/")), "rb") as content:
                    for block in iter(lambda: content.read(1 << 20), b""):
                        digest.update(block)
            except OSError:
                wrong.append(name)
                continue
            if digest.hexdigest() != wanted:
                wrong.append(name)
    return wrong


def main(words):
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in supported():
        fitting = " / ".join(supported())
        say(
            f"This is Python {version}, but the packages here are for Python {fitting}. Run install.py with that one.",
            f"実行中の Python は {version} ですが、同梱のパッケージは Python {fitting} 用です。"
            "該当する Python で install.py を実行してください。",
        )
        return 2
    say("Comparing checksums ...", "チェックサムを照合しています…")
    wrong = ", ".join(damaged()[:5])
    if wrong:
        say(
            f"These files are damaged or missing; copy the archive again: {wrong}",
            f"次のファイルが壊れているか、見つかりません。アーカイブをコピーし直してください: {wrong}",
        )
        return 1
    if "--check" in words:
        say("All files are intact.", "すべてのファイルが正常です。")
        return 0
    base = os.path.abspath(words[words.index("--into") + 1]) if "--into" in words else HERE
    folder = os.path.join(base, ".venv")
    programs = os.path.join(folder, "Scripts" if os.name == "nt" else "bin")
    python = os.path.join(programs, "python.exe" if os.name == "nt" else "python")
    say(f"Installing into {folder} (a few minutes) ...", f"{folder} にインストールしています(数分かかります)…")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment.update(PIP_CONFIG_FILE=os.devnull, PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUTF8="1")
    wheels = os.path.join(HERE, "wheels")
    labkit = next(name for name in os.listdir(wheels) if name.startswith("diffusion_labkit-"))
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels]
    install += ["--constraint", os.path.join(HERE, "constraints.txt")]
    install += ["diffusion-labkit[course]==" + labkit.split("-")[1]]
    for command in ([sys.executable, "-m", "venv", folder], install):
        if subprocess.call(command, env=environment):
            failed = " ".join(command)
            say(f"This command failed: {failed}", f"次のコマンドが失敗しました: {failed}")
            if command is not install:
                say(
                    "On Debian and Ubuntu: apt-get install python3-venv",
                    "Debian / Ubuntu では apt-get install python3-venv を実行してください。",
                )
            return 1
    program = os.path.join(programs, "labkit.exe" if os.name == "nt" else "labkit")
    say("Trying it out: a picture, a training step, CLIP ...", "動作を確認しています(画像、学習、CLIP)…")
    environment["HF_HUB_OFFLINE"] = "1"
    if subprocess.call([program, "env"], env=environment, cwd=base):
        return 1
    say(
        f'Ready. Open the lessons: "{program}" lab',
        f'インストールが完了しました。レッスンを開くコマンド: "{program}" lab',
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
