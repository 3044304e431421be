"""What `make mutants` found: per file of equations the share of changes that a test noticed, and those that none did.

Exit code 1 where a file stays below `GOAL`. `mutmut show NAME` prints a change, `mutmut tests-for-mutant NAME` who ran.
"""

import json
import sys
from pathlib import Path

GOAL = 0.95
SURVIVED, NO_TEST = {0}, {5, 33}  # exit codes of mutmut; what raises, fails or runs out of time is noticed


def main(folder: Path) -> int:
    low = False
    for meta in sorted(folder.rglob("equations.py.meta")):
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        tried = {name: code for name, code in codes.items() if code is not None}
        alive = [name for name, code in tried.items() if code in SURVIVED | NO_TEST]
        if not tried:
            continue
        score = 1 - len(alive) / len(tried)
        low |= score < GOAL
        waiting = f", {len(codes) - len(tried)} not tried" if len(codes) > len(tried) else ""
        print(f"{meta.relative_to(folder).with_suffix('')}: {score:.1%} of {len(tried)} noticed{waiting}")
        for name in alive:
            print(f"    {name}" + (" (no test)" if tried[name] in NO_TEST else ""))
    return int(low)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "mutants")))
