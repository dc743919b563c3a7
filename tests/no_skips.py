"""pytest hooks: what is soak or journey is slow too; and on the machine that judges a change (CI=true) a skipped test
has failed, but for want of hardware."""

import os

import pytest

HARDWARE = ("needs a GPU", "needs a TPU")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`-m "not slow"` stands in place of the `-m` that leaves those two out."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("soak", "journey")):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _judged((yield))


def _judged(report):
    """The report, a failure if it is a skip that CI must not have. An expected failure is no skip."""
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI", "") in {"", "0", "false"}:
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(HARDWARE):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI takes for a failure; install what it needs ({reason})"
    return report
