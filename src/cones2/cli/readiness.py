"""How `cones2 check` tells what was measured of photos."""

from typing import Any

from cones2.photos import PhotoFacts, PhotoReport


def rows(report: PhotoReport) -> dict[str, str]:
    """Give a row of text for each photo."""
    return {facts.path.name: _told(facts) for facts in report.photos}


def as_json_values(report: PhotoReport) -> dict[str, Any]:
    """Give all of a report as JSON values."""
    return {
        "size": report.size,
        "photos": [
            {
                "path": str(facts.path),
                "width": facts.width,
                "height": facts.height,
                "sharpness": facts.sharpness,
                "tones": list(facts.tones),
                "clipped": list(facts.clipped),
                "contrast": facts.contrast,
                "filled": facts.filled,
            }
            for facts in report.photos
        ],
        "findings": [
            {"kind": finding.kind, "photos": list(finding.photos), "text": finding.text, "fatal": finding.fatal}
            for finding in report.findings
        ],
    }


def _told(facts: PhotoFacts) -> str:
    black, white = facts.clipped
    return (
        f"{facts.width}x{facts.height}, sharpness {facts.sharpness:.0f}, grey {facts.tones[0]:.0f} to"
        f" {facts.tones[1]:.0f}, {black:.0%} black, {white:.0%} white, subject on {facts.filled:.0%}"
    )
