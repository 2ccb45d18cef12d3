"""Fail where pip-audit knows a hole in an installed package, and say so where its service can't be reached."""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603  # pip-audit
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"pip-audit: NOTHING WAS AUDITED, its service could not be reached ({said[:300]})")
        return 0
    audited = [each for each in found if "skip_reason" not in each]
    holes = [(each, hole) for each in audited for hole in each["vulns"]]
    for each, hole in holes:
        print(f"pip-audit: {each['name']} {each['version']}: {hole['id']}, mended in {hole['fix_versions']}")
    if not audited:
        print(f"pip-audit: NOTHING WAS AUDITED, its service knows none of the {len(found)} packages; is it a mirror?")
    else:
        print(f"pip-audit: {len(audited)} packages audited, {len(found) - len(audited)} unknown, {len(holes)} holes")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
