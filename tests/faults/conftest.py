"""How many faults were delivered is told at the end, test by test."""


def pytest_terminal_summary(terminalreporter) -> None:
    told = [
        (report.nodeid, dict(report.user_properties)["faults"])
        for report in terminalreporter.getreports("passed")
        if "faults" in dict(report.user_properties)
    ]
    if told:
        terminalreporter.section("faults delivered")
        for name, faults in sorted(told):
            terminalreporter.line(f"{name.split('::')[-1]}: {faults}")
