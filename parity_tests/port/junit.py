"""The report as JUnit XML, for a CI: a test case for each comparison and each layer."""

from __future__ import annotations

import math
from xml.etree import ElementTree as Xml

from parity_tests.port.report import DEPARTS, Check, Report
from parity_tests.port.text import departure, named, numbers, verdict


def junit(report: Report, name: str = "port") -> str:
    """An XML document with two suites, "comparisons" and "layers".

    Args:
        report: what was found.
        name: of the whole.
    """
    root = Xml.Element("testsuites", name=name)
    failing = {id(check) for check in report.departures}
    suite = _suite(root, "comparisons", len(report.checks), len(failing))
    for check in report.checks:
        case = _case(suite, f"{name}.{check.name}", check.subject, check)
        if id(check) in failing:
            Xml.SubElement(case, "failure", message=numbers(check)).text = verdict(report)
    departing = [layer for layer in report.layers if layer.status == DEPARTS]
    suite = _suite(root, "layers", len(report.layers), len(departing))
    for layer in report.layers:
        case = _case(suite, f"{name}.layers", named(layer), None)
        if layer.status == DEPARTS:
            lines = departure(layer)
            Xml.SubElement(case, "failure", message=lines[-1]).text = "\n".join(lines)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: Xml.Element, name: str, tests: int, failures: int) -> Xml.Element:
    counts = {"tests": str(tests), "failures": str(failures), "errors": "0"}
    return Xml.SubElement(root, "testsuite", {"name": name, **counts})


def _case(suite: Xml.Element, group: str, name: str, check: Check | None) -> Xml.Element:
    case = Xml.SubElement(suite, "testcase", {"classname": group, "name": name})
    if check is not None:
        error = check.distance.error
        told = f"{error:.3e}" if math.isfinite(error) else "infinite"
        properties = Xml.SubElement(case, "properties")
        Xml.SubElement(properties, "property", name="error", value=told)
        Xml.SubElement(properties, "property", name="gate", value=f"{check.gate:.3e}")
    return case
