"""Words for classes that are known by codes, from a file of lines "n02391049 zebra", such as ImageNet's
LOC_synset_mapping.txt.

What stands behind the first comma, other words for the same, is left out.
"""

from collections import Counter
from collections.abc import Sequence

from contextdiff_jax.data.listing import listed
from contextdiff_jax.errors import UserError
from contextdiff_jax.files import composed, read_text, text_lines, user_path


def named(codes: Sequence[str], path: str) -> tuple[str, ...]:
    """The words of these codes; those that several share have their code behind them: "crane (n02012849)".

    Args:
        codes: of the classes, such as the names of their folders.
        path: of the file; "" leaves the codes as they are.

    Raises:
        UserError: the file cannot be read, says something else, or leaves a code out.
    """
    if not path:
        return tuple(codes)
    words = read(path)
    if missing := [code for code in codes if composed(code) not in words]:
        raise UserError(f"data.class_words: {path} has no line for {listed(missing)}; add it, as 'CODE words'")
    found = [words[composed(code)] for code in codes]
    count = Counter(found)
    return tuple(word if count[word] == 1 else f"{word} ({code})" for word, code in zip(found, codes, strict=True))


def read(path: str) -> dict[str, str]:
    """{code: its first word or words}, composed; empty lines say nothing.

    Raises:
        UserError: the file cannot be read, a line is no code with words behind it, or a code comes twice.
    """
    words: dict[str, str] = {}
    for number, line in enumerate(text_lines(composed(read_text(user_path(path)))), 1):
        if not line.strip():
            continue
        code, _, rest = line.strip().replace("\t", " ").partition(" ")
        first = rest.partition(",")[0].strip()
        if not first or code in words:
            problem = f"{code!r} comes again" if first else f"{line!r} is no code with words behind it"
            raise UserError(f"data.class_words: {path} line {number}: {problem}; give lines like 'n02391049 zebra'")
        words[code] = first
    return words
