"""The certificate for a person, and what all pages are drawn with: one HTML file, without network or script.

A page stands beside what it shows: `tfm.latency.write_latency`, `tfm.study.inspect.write_inspect`.
"""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .chart_rows import Bar, Cell, Row
    from .curves import ActivationCurve, Plot, plot
    from .html import kept_pictures, write_report
    from .maps import AttentionMap, Label
    from .pages import check_schema, write_page

__all__ = [
    "ActivationCurve",
    "AttentionMap",
    "Bar",
    "Cell",
    "Label",
    "Plot",
    "Row",
    "check_schema",
    "kept_pictures",
    "plot",
    "write_page",
    "write_report",
]

# A curve or a map is data, and whoever gives one does not need jinja2 for it.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "chart_rows": "Bar Cell Row",
        "curves": "ActivationCurve Plot plot",
        "html": "kept_pictures write_report",
        "maps": "AttentionMap Label",
        "pages": "check_schema write_page",
    },
    {
        "name_heads": "tfm.study.inspect.name_heads",
        "write_activations": "tfm.study.activations.write_activations",
        "write_inspect": "tfm.study.inspect.write_inspect",
        "write_latency": "tfm.latency.write_latency",
        "write_study": "write_study of benchmarks/activation_study, in a checkout of the source",
    },
)
