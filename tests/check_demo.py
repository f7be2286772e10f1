"""Checks the report of a demo run against what the method promises in the simulated world.

    python tests/check_demo.py runs/demo

Exit code 1 if a promise is not kept. Points are percentage points of accuracy on test users.
"""

import json
import pathlib
import sys

MINORITIES = ("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")
METHODS = ("global", "scpo", "full", "filter_only", "weight_only", "random_subset")


def main(workdir: pathlib.Path) -> int:
    report = json.loads((workdir / "reports" / "evaluation.json").read_text())
    summary = json.loads((workdir / "data" / "summary.json").read_text())
    seconds = sum(stage["seconds"] for stage in json.loads((workdir / "run.json").read_text())["stages"].values())
    gain, gap = report["gain"]["scpo"]["all"], report["agreed_gap_to_truth"]["scpo"]
    majority = [record["global"]["accuracy"] / record["bayes"] for record in report["majority"].values()]
    users = min(summary["groups"][group]["users_test"] for group in MINORITIES)
    claims = list(report["verdict"].values()).count("culture")
    checks = {
        "all seven groups and six methods": all(set(report["methods"][m]) == set(MINORITIES) for m in METHODS),
        f"global RM at {min(majority):.3f} of the truth or more at home (0.95)": min(majority) >= 0.95,
        f"{users} test users a group or more (60)": users >= 60,
        f"mean gain {100 * gain['difference']:.1f} points (5)": gain["difference"] >= 0.05,
        f"lower end of its interval {100 * gain['low']:.1f} (2)": gain["low"] > 0.02,
        f"truth - scpo on agreed pairs from {100 * gap['low']:.1f} (3)": gap["low"] < 0.03,
        f"culture claimed for {claims} of seven countries (5)": claims >= 5,
        "what is constant by definition is left out": all(
            report["macro"]["global"][which]["difference"] is None for which in ("edited", "agreed")
        ),
        "no method beats the truth by more than chance": all(
            report["macro"][m]["all"]["low"] < report["macro_bayes"]["all"]["high"] for m in METHODS
        ),
        f"{seconds:.0f} s in its stages (240)": seconds < 240,
    }
    for what, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {what}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
