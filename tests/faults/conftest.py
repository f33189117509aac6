"""How many faults were delivered is told at the end, test by test; mistakes of users together for each test."""

from collections import Counter

MISTAKE = "1 mistake"


def pytest_terminal_summary(terminalreporter) -> None:
    told = [
        (report.nodeid, dict(report.user_properties)["faults"])
        for report in terminalreporter.getreports("passed")
        if "faults" in dict(report.user_properties)
    ]
    mistakes = Counter(name.split("::")[1].split("[")[0] for name, faults in told if faults == MISTAKE)
    told = [(name.split("::")[-1], faults) for name, faults in told if faults != MISTAKE]
    told += [(name, f"{count} mistakes") for name, count in mistakes.items()]
    if told:
        terminalreporter.section("faults delivered")
        for name, faults in sorted(told):
            terminalreporter.line(f"{name}: {faults}")
        if mistakes:
            terminalreporter.line(f"{mistakes.total()} mistakes of users in all")
