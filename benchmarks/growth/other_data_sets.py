"""Real data that comes with Python and scikit-learn, and that Esper's defaults were never tried on.

Nothing is downloaded. What comes with Python (its sources, its manual, its table of characters) differs a little from
version to version; results name the version.
"""

import io
import keyword
import sysconfig
import tokenize
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np

MOST_ROWS = 6_000
MODULES = (
    *("_pydecimal", "argparse", "ast", "datetime", "doctest"),
    *("inspect", "ipaddress", "pickletools", "tarfile", "typing"),
)
WINDOW = 160
"""Characters of a piece of source code."""

BEFORE = 4
"""Tokens by which the next one is predicted."""

BITS = 17
"""Of a code point: the planes 0 and 1."""

LONG_STRETCHES = ("CJK", "HANGUL", "TANGUT")
"""How names of characters begin that fill long stretches with one category."""

KEYWORD = -1
Table = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def write(name: str, folder: Path) -> str:
    """Write a data set to a folder; what ``esper run --data`` then takes."""
    if name == "manual":
        path = folder / "manual.txt"
        path.write_text("\n".join(topics.topics.values()), encoding="utf-8")
        return f"text:{path}"
    if name in QUANTITIES:
        path = folder / f"{name}.parquet"
        QUANTITIES[name]().to_parquet(path, index=False)
        return str(path)
    x, y = TABLES[name]()
    kept = np.random.default_rng(0).permutation(len(y))[:MOST_ROWS]
    path = folder / f"{name}.npz"
    np.savez(path, x=x[kept], y=y[kept])
    return str(path)


def breast_cancer() -> Table:
    """569 tumours, benign or malignant, by 30 measurements of cell nuclei (Wolberg, Street and Mangasarian, 1995)."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return data.data, data.target


def wine() -> Table:
    """178 wines of three growers, by 13 chemical measurements (Forina et al., 1988)."""
    from sklearn.datasets import load_wine

    data = load_wine()
    return data.data, data.target


def modules() -> Table:
    """Which of ten modules of the standard library a piece of source code is from, by how often it has each letter."""
    counts, labels = [], []
    for label, name in enumerate(MODULES):
        codes = np.frombuffer(_source(name).encode("ascii", "replace"), dtype=np.uint8)
        for start in range(0, len(codes) - WINDOW, WINDOW):
            counts.append(np.bincount(codes[start : start + WINDOW], minlength=128))
            labels.append(label)
    x = np.array(counts)
    return x[:, x.any(axis=0)], np.array(labels)


def tokens() -> Table:
    """Of which kind the next token of a Python source is, by kind and length of the four before."""
    rows, labels = [], []
    for name in MODULES:
        kinds, lengths = zip(*_tokens(_source(name)), strict=True)
        for index in range(BEFORE, len(kinds)):
            before = slice(index - BEFORE, index)
            rows.append([*kinds[before], *lengths[before]])
            labels.append(kinds[index])
    usual = [kind for kind, count in Counter(labels).items() if count >= MOST_ROWS // 100]
    table, y = np.array(rows), np.array(labels)
    table, y = (part[np.isin(y, usual)] for part in (table, y))
    one_hot = table[:, :BEFORE, None] == np.unique(table[:, :BEFORE])
    return np.concatenate([one_hot.reshape(len(y), -1), np.log1p(table[:, BEFORE:])], axis=1), y


def characters() -> Table:
    """Of which category a character of Unicode is, by the bits of its code point.

    Ideographs and Hangul syllables are left out, and so are rare categories.
    """
    names = [unicodedata.name(chr(code), "") for code in range(2**BITS)]
    codes = np.array([code for code, name in enumerate(names) if name and not name.startswith(LONG_STRETCHES)])
    categories = np.array([unicodedata.category(chr(code)) for code in codes.tolist()])
    found, counts = np.unique(categories, return_counts=True)
    usual = np.isin(categories, found[counts >= len(codes) / 100])
    return (codes[usual, None] >> np.arange(BITS)) & 1, categories[usual]


TABLES: dict[str, Callable[[], Table]] = {
    "breast_cancer": breast_cancer,
    "wine": wine,
    "modules": modules,
    "tokens": tokens,
    "characters": characters,
}


def diabetes() -> Any:
    """How far diabetes has gone within a year, of 442 patients, by 10 measurements (Efron et al., 2004)."""
    from sklearn.datasets import load_diabetes

    return load_diabetes(as_frame=True, scaled=False).frame


def friedman1() -> Any:
    """A formula of five of ten random numbers, with noise (Friedman, 1991; Breiman, 1996)."""
    from sklearn.datasets import make_friedman1

    return _named(*make_friedman1(MOST_ROWS, noise=1.0, random_state=0))


def friedman2() -> Any:
    """Impedance of a circuit by its four parts, with noise (Friedman, 1991; Breiman, 1996)."""
    from sklearn.datasets import make_friedman2

    return _named(*make_friedman2(MOST_ROWS, noise=125.0, random_state=0))


QUANTITIES: dict[str, Callable[[], Any]] = {"diabetes": diabetes, "friedman1": friedman1, "friedman2": friedman2}
"""Tables whose target is a quantity: one real one, two made by a formula, as none of size comes with scikit-learn."""

DATA_SETS = (*TABLES, "manual", *QUANTITIES)
"""All of them; the manual is a text, Python's own of its language."""


def _named(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    import pandas

    return pandas.DataFrame(x, columns=[f"x{index}" for index in range(x.shape[1])]).assign(target=y)


def _source(module: str) -> str:
    return (Path(sysconfig.get_path("stdlib")) / f"{module}.py").read_text(encoding="utf-8")


def _tokens(source: str) -> Iterator[tuple[int, int]]:
    """Kind and length of every token; keywords are a kind of their own, comments are left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        kind = KEYWORD if keyword.iskeyword(token.string) else token.exact_type
        yield kind, len(token.string)
