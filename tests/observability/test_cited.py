"""Numbers and words as a reader sees them."""

import pytest

from esper.observability.cited import SPECS, Cited, Name, words


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (1292, "number", "1,292"),
        (0.0312345, "number", "0.03123"),
        (0.9496, "percent", "95.0%"),
        (0.24, "share", "24%"),
        (0.004, "share", "0.4%"),
        (0.0302, "points", "+3.0"),
        (-0.0001, "points", "+0.0"),
        (-0.0302, "points_apart", "3.0"),
        (0.15875, "loss", "0.1588"),
        (-0.1, "nats", "-0.100"),
        (-0.1, "nats_apart", "0.100"),
        (1e20, "loss", "1e+20"),
        (147_831_744, "flops", "147.8 M"),
        (2.5e9, "flops", "2.5 G"),
        (7e15, "flops", "7,000.0 T"),
        (900, "flops", "0.9 k"),
        (3.52, "seconds", "3.5 s"),
        (42.4, "seconds", "42 s"),
        (80.4, "seconds", "1 min 20 s"),
        (7320, "seconds", "2 h 2 min"),
        (0.005, "plain", "0.005"),
        (-3.04, "z", "-3.0"),
    ],
)
def test_how_a_number_is_written(value, spec, text):
    assert str(Cited(value, ("result.json#/x",), spec=spec)) == text
    assert spec in SPECS


def test_words_print_as_text_and_as_html():
    said = words("a < b: ", Cited(0.5, ('x"#/y',), spec="share"), " of ", Name("f<g>"))
    assert str(said) == "a < b: 50% of f<g>"
    shown = '<data value="0.5" data-from="[&#34;value&#34;, &#34;x\\&#34;#/y&#34;]" data-spec="share">50%</data>'
    assert str(said.__html__()) == f"a &lt; b: {shown} of <code>f&lt;g&gt;</code>"
