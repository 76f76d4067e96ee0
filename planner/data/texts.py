"""Labelled texts from .csv and .tsv files, tokenised to one fixed length."""

import copy
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import torch
from torch import Tensor

from trady.planner.data.datasets import LabelledData, skipped_in_words
from trady.planner.errors import DataError

_PAD_TOKENS: Final = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
_SPLIT_COLUMN: Final = "split"


@dataclass(frozen=True)
class TextFormat:
    """How texts become a model's inputs: token ids and a mask, padded or cut to one length.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``, or a fast tokenizer of transformers. It is never changed.
        max_tokens: Length of every input, special tokens included.
        pad_id: Token id that fills short inputs.
        token_types: Give ``token_type_ids`` too (all zero for single texts, which is BERT's default).
    """

    tokenizer: Any
    max_tokens: int
    pad_id: int = 0
    token_types: bool = False

    @classmethod
    def from_file(cls, path: str | Path, max_tokens: int, *, token_types: bool = False) -> "TextFormat":
        """Read a ``tokenizer.json``; the pad id is the one it names, else that of a usual pad token, else 0.

        Returns:
            The format.

        Raises:
            DataError: tokenizers is not installed, or the file is not a tokenizer's.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DataError(
                'Texts are read with tokenizers, which is not installed. pip install "trady[text]"'
            ) from error
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"Tokenizer {str(path)!r} cannot be read: {error}. Give a tokenizer.json.") from error
        return cls(tokenizer, max_tokens, _pad_id(tokenizer), token_types)


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    known = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    return next((token_id for token_id in known if token_id is not None), 0)


@dataclass(frozen=True)
class TableFormat:
    """How a table of texts is read.

    Args:
        delimiter: Between fields; by default a tab for ``.tsv``, else a comma.
        text_column: Header of the texts.
        label_column: Header of the labels.
    """

    delimiter: str | None = None
    text_column: str = "text"
    label_column: str = "label"


class TableKeywords(TypedDict, total=False):
    """The fields of :class:`TableFormat`."""

    delimiter: str | None
    text_column: str
    label_column: str


class Texts:
    """Texts of one table, tokenised when asked for.

    Args:
        texts: The texts themselves.
        lines: Line number of each in its file.
        text: The model's format.

    Raises:
        DataError: The tokenizer is none, or the length leaves no room for a token.
    """

    noun = "texts"

    def __init__(self, texts: Sequence[str], lines: Sequence[int], text: TextFormat) -> None:
        self.texts = texts
        self.lines = lines
        self.text = text
        self._tokenizer = _cutting_tokenizer(text)

    def __len__(self) -> int:
        return len(self.texts)

    def name(self, index: int) -> str:
        """The text's line in its file."""
        return f"line {self.lines[index]}"

    def load(self, index: int) -> dict[str, Tensor]:
        """int64 ``[max_tokens]`` each: ``input_ids``, ``attention_mask``, ``token_type_ids`` if asked.

        Raises:
            DataError: The text has no tokens.
        """
        encoding = self._tokenizer.encode(self.texts[index])
        if not encoding.ids:
            raise DataError(f"Text at {self.name(index)} has no tokens. Remove the line.")
        columns = {"input_ids": (encoding.ids, self.text.pad_id), "attention_mask": (encoding.attention_mask, 0)}
        if self.text.token_types:
            columns["token_type_ids"] = (encoding.type_ids, 0)
        return {name: self._padded(values, fill) for name, (values, fill) in columns.items()}

    def _padded(self, values: Sequence[int], fill: int) -> Tensor:
        padded = torch.full((self.text.max_tokens,), fill)
        padded[: len(values)] = torch.tensor(values)
        return padded


def _cutting_tokenizer(text: TextFormat) -> Any:
    """A copy of the tokenizer that cuts at ``max_tokens`` (keeping closing tokens) and does not pad.

    Raises:
        DataError: It is no tokenizer, or leaves no token of a text.
    """
    tokenizer = getattr(text.tokenizer, "backend_tokenizer", text.tokenizer)
    if not hasattr(tokenizer, "enable_truncation"):
        raise DataError(
            f"Tokenizer must be a tokenizers.Tokenizer, got {type(tokenizer).__name__}. "
            "Give TextFormat.from_file('tokenizer.json', max_tokens=128)."
        )
    num_special = tokenizer.num_special_tokens_to_add(False)
    if text.max_tokens <= num_special:
        raise DataError(
            f"Text length must be above the tokenizer's {num_special} special tokens, got {text.max_tokens} tokens. "
            "Give for instance max_tokens=128."
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.enable_truncation(text.max_tokens)
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class _Row:
    line: int
    split: str
    label: str
    text: str


def read_table(path: Path, text: TextFormat, split: str, table: TableFormat) -> LabelledData:
    """Read labelled texts from a table with a header line, UTF-8.

    A ``.tsv`` has no quoting (quotes are text); a ``.csv`` has the usual one. A column ``split``
    (train, dev, test) divides the rows. Classes are those of the training rows, whole numbers in
    numeric order, else sorted as text. Rows without a label or with a wrong number of fields are
    skipped and named.

    Args:
        path: The table.
        text: The model's format.
        split: Which rows: ``"train"``, ``"validation"`` or ``"test"``.
        table: Delimiter and columns.

    Raises:
        DataError: The table cannot be read, lacks a column or the split, is empty or mostly malformed,
            or has labels that the training rows do not have.
    """
    header, raw_rows = _read_rows(path, table.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ","))
    absent = [column for column in (table.label_column, table.text_column) if column not in header]
    if absent:
        raise DataError(
            f"{path} has no column {' and no column '.join(map(repr, absent))}: its first line has "
            f"{', '.join(map(repr, header))}. Add a header line, or name the columns "
            "(text_column=, label_column=, delimiter=)."
        )
    rows, malformed = _well_formed(header, raw_rows, table)
    _check_rows(path, rows, malformed)
    chosen, note = _rows_of_split(path, rows, split, divided=_SPLIT_COLUMN in header)
    classes = _sorted_classes({row.label for row in rows if row.split == "train"} or {row.label for row in rows})
    labels = _labels(path, chosen, classes)
    items = Texts([row.text for row in chosen], [row.line for row in chosen], text)
    return LabelledData(items, labels, classes, str(path), note=note, malformed=malformed)


def _read_rows(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each further row with its line number; empty lines are no rows.

    Raises:
        DataError: The file is empty, or no table in UTF-8.
    """
    is_quoted = path.suffix.lower() != ".tsv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a table in UTF-8: {error}. Save it as UTF-8, one row a line."
        ) from error
    if not rows:
        raise DataError(f"{path} is empty. Give a header line with 'label' and 'text', then one row a line.")
    return [name.strip() for name in rows[0][1]], rows[1:]


def _well_formed(
    header: Sequence[str], rows: Sequence[tuple[int, list[str]]], table: TableFormat
) -> tuple[list[_Row], list[str]]:
    """Rows with as many fields as the header, a label and a text; and the names of the others."""
    well_formed, malformed = [], []
    for line, fields in rows:
        values = dict(zip(header, fields, strict=False))
        label, words = values.get(table.label_column, "").strip(), values.get(table.text_column, "").strip()
        if len(fields) == len(header) and label and words:
            well_formed.append(_Row(line, _split_name(values.get(_SPLIT_COLUMN, "train")), label, words))
        else:
            malformed.append(f"line {line}")
    return well_formed, malformed


def _split_name(value: str) -> str:
    name = value.strip().lower()
    return "validation" if name in ("dev", "val", "valid") else name


def _check_rows(path: Path, rows: Sequence[_Row], malformed: Sequence[str]) -> None:
    if len(malformed) > len(rows):
        raise DataError(
            f"{path} is mostly unreadable: {len(malformed)} of {len(rows) + len(malformed)} rows have a wrong number "
            f"of fields, no label or no text ({skipped_in_words(malformed)}). Check its delimiter and quoting."
        )
    if not rows:
        raise DataError(f"{path} has a header line and no rows. Add one row a line.")


def _rows_of_split(path: Path, rows: Sequence[_Row], split: str, *, divided: bool) -> tuple[list[_Row], str]:
    chosen = [row for row in rows if row.split == split]
    if chosen:
        return chosen, f"rows of split {split!r}" if divided else ""
    found = ", ".join(sorted({repr(row.split) for row in rows}))
    raise DataError(f"{path} has no rows of split {split!r}, only of {found}. Ask for one of these, or use .split().")


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _labels(path: Path, rows: Sequence[_Row], classes: Sequence[str]) -> Tensor:
    position = {name: label for label, name in enumerate(classes)}
    foreign = list(_foreign_labels(rows, position))
    if foreign:
        raise DataError(
            f"{path} has labels outside those of its training rows: {', '.join(foreign[:3])} "
            f"({len(foreign)} rows; known: {', '.join(classes)}). Correct or remove these rows."
        )
    return torch.tensor([position[row.label] for row in rows])


def _foreign_labels(rows: Sequence[_Row], known: dict[str, int]) -> Iterator[str]:
    return (f"{row.label!r} at line {row.line}" for row in rows if row.label not in known)
