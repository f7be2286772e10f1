"""Known vulnerabilities of the packages installed here, by pip-audit from OSV; reads `name==version` lines from stdin.

    pip freeze --exclude-editable | python .ci/audit.py

Exit code 1 if one of setup.py's install_requires has one. Those of other packages are named and nothing more; where
pip-audit or OSV cannot be reached that is said, and nothing follows from it.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

SECONDS = 180.0
SETUP = pathlib.Path(__file__).resolve().parent.parent / "setup.py"


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """Names in install_requires."""
    block = re.search(r"install_requires=\[(.*?)\n    \]", SETUP.read_text(), re.S).group(1)
    return {canonical(name) for name in re.findall(r'"([\w.-]+)', block)}


def report(requirements: str) -> list[dict] | None:
    """What pip-audit says of every package; None where it says nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command = ["pip-audit", "-r", file.name, "--no-deps", "--disable-pip", "--progress-spinner=off"]
        command += ["--vulnerability-service=osv", "--timeout=10", "--format=json"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            return json.loads(found.stdout)["dependencies"]
        except subprocess.TimeoutExpired:
            print(f"audit: no answer within {SECONDS:.0f} seconds")
        except OSError as error:
            print(f"audit: pip-audit is not here ({error})")
        except (ValueError, KeyError):
            print(f"audit: no answer ({(found.stderr.strip().splitlines() or ['nothing was said'])[-1][:200]})")
    return None


def main() -> int:
    """Prints what is known, and returns the exit code."""
    pinned = [line for line in sys.stdin.read().splitlines() if re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)]
    packages = report("\n".join(pinned) + "\n")
    if packages is None:
        return 0
    ours, code = required(), 0
    for package in packages:
        for known in package.get("vulns", []):
            own = canonical(package["name"]) in ours
            code |= own
            fixed = ", ".join(known["fix_versions"]) or "no version"
            where = "install_requires" if own else "not ours"
            print(f"audit: {package['name']} {package['version']} ({where}): {known['id']}, fixed in {fixed}")
    print(f"audit: {len(packages)} packages looked at")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
