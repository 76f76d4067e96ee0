"""Tables of labelled texts, with a tokenizer of three lines."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from trady.planner.data.datasets import LabelledData
from trady.planner.data.opening import open_data
from trady.planner.data.texts import TextFormat, Texts
from trady.planner.errors import DataError

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", '"', "a")


def word_tokenizer(special: bool = True) -> Any:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return tokenizer


FORMAT = TextFormat(word_tokenizer(), max_tokens=5)


def opened(path: Path, content: str | bytes, text: TextFormat = FORMAT, **options: Any) -> LabelledData:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    data = open_data(path, text=text, **options)
    assert isinstance(data, LabelledData)
    return data


def first_item(data: LabelledData) -> dict[str, Any]:
    item, _ = data[0]
    assert isinstance(item, dict)
    return item


def test_texts_are_padded_and_cut_to_one_length(tmp_path: Path) -> None:
    data = opened(tmp_path / "t.csv", "label,text\nneg,bad\npos,a good good good film\n")
    short, long = data[0][0], data[1][0]
    assert isinstance(short, dict) and isinstance(long, dict) and sorted(short) == ["attention_mask", "input_ids"]
    assert short["input_ids"].tolist() == [2, 5, 3, 0, 0] and short["attention_mask"].tolist() == [1, 1, 1, 0, 0]
    assert long["input_ids"].tolist() == [2, 8, 4, 4, 3], "the closing token outlives the cut"
    batch = next(data.batches(2))
    assert isinstance(batch.inputs, dict) and batch.inputs["input_ids"].shape == (2, 5)
    assert batch.inputs["input_ids"].dtype == batch.targets.dtype == torch.int64


def test_token_types_and_another_pad(tmp_path: Path) -> None:
    text = TextFormat(word_tokenizer(), 5, pad_id=1, token_types=True)
    item = opened(tmp_path / "t.csv", "label,text\n0,bad\n1,good\n", text)[0][0]
    assert isinstance(item, dict) and item["input_ids"].tolist() == [2, 5, 3, 1, 1]
    assert item["token_type_ids"].tolist() == [0] * 5


def test_the_users_tokenizer_is_left_as_it_was(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.enable_padding(length=9)
    data = opened(tmp_path / "t.csv", "label,text\n0,bad\n1,good\n", TextFormat(tokenizer, 5))
    assert len(first_item(data)["input_ids"]) == 5
    assert tokenizer.padding["length"] == 9 and tokenizer.truncation is None


def test_data_can_be_sent_to_another_process(tmp_path: Path) -> None:
    data = opened(tmp_path / "t.csv", "label,text\n0,bad\n1,good\n")
    assert pickle.loads(pickle.dumps(data))[0][0]["input_ids"].equal(first_item(data)["input_ids"])


def test_a_fast_tokenizer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer())
    item = opened(tmp_path / "t.csv", "label,text\n0,bad\n1,good\n", TextFormat(fast, 5))[0][0]
    assert isinstance(item, dict) and item["input_ids"].tolist() == [2, 5, 3, 0, 0]


def test_a_tsv_has_no_quoting_and_a_csv_has(tmp_path: Path) -> None:
    table = opened(tmp_path / "t.tsv", 'label\ttext\n0\t"bad film\n1\tgood "\n')
    assert isinstance(table.items, Texts) and table.items.texts == ['"bad film', 'good "']
    table = opened(tmp_path / "t.csv", 'label,text\n0,"bad, ""film""\nbad"\n1,good\n')
    assert isinstance(table.items, Texts) and table.items.texts == ['bad, "film"\nbad', "good"]


def test_rows_are_chosen_by_split_and_share_the_training_classes(tmp_path: Path) -> None:
    content = "split\tlabel\ttext\ntrain\t10\tgood\ntrain\t9\tbad\ndev\t10\tfilm\ndev\t9\tbad\ntrain\t9\ta film\n"
    training = opened(tmp_path / "t.tsv", content)
    assert training.classes == ("9", "10") and training.labels.tolist() == [1, 0, 0]
    validation = opened(tmp_path / "t.tsv", content, split="val")
    assert validation.labels.tolist() == [1, 0] and validation.note == "rows of split 'validation'"
    with pytest.raises(DataError, match="no rows of split 'test', only of 'train', 'validation'"):
        opened(tmp_path / "t.tsv", content, split="test")


def test_labels_unknown_to_training_are_refused_where_they_are_read(tmp_path: Path) -> None:
    content = "split\tlabel\ttext\ntrain\t1\tgood\ntrain\t0\tbad\ntest\t-1\tfilm\n"
    assert opened(tmp_path / "t.tsv", content).classes == ("0", "1")
    with pytest.raises(DataError, match=r"outside those of its training rows: '-1' at line 4 \(1 rows; known: 0, 1\)"):
        opened(tmp_path / "t.tsv", content, split="test")


def test_other_columns_delimiters_and_a_byte_order_mark(tmp_path: Path) -> None:
    content = "\ufeffsentiment;sentence\nneg;bad\npos;good\n".encode()
    data = opened(tmp_path / "t.csv", content, delimiter=";", text_column="sentence", label_column="sentiment")
    assert data.classes == ("neg", "pos")


def test_malformed_rows_are_skipped_and_named(tmp_path: Path) -> None:
    data = opened(tmp_path / "t.csv", "label,text\n0,bad\n1\n,good\n1,good\n0,\n1,a,film\n0,film\n1,a\n\n1,film\n")
    assert data.skipped == ("line 3", "line 4", "line 6", "line 7") and len(data) == 5


def test_mostly_malformed_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mostly unreadable: 2 of 3 rows .* \(skipped 2: line 3, line 4\)"):
        opened(tmp_path / "t.csv", "label,text\n0,bad\n1\n1,a,film\n")


def test_a_text_without_tokens_is_skipped(tmp_path: Path) -> None:
    bare = word_tokenizer(special=False)
    bare.normalizer = __import__("tokenizers").normalizers.Replace("film", "")
    data = opened(tmp_path / "t.csv", "label,text\n0,bad\n1,good\n1,film\n", TextFormat(bare, 5))
    assert len(list(data.batches(1))) == 2 and data.skipped == ("line 4",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\tbad\n1\tgood\n", "no column 'label' and no column 'text': its first line has '0', 'bad'"),
        ("label\tsentence\n0\tbad\n", "no column 'text': its first line has 'label', 'sentence'"),
        ("", "is empty. Give a header line"),
        ("label\ttext\n", "a header line and no rows"),
        ("label\ttext\n0\tbad\n0\tgood\n", r"one class, '0' \(2 texts\)"),
        (b"label\ttext\n0\tb\xff\xfe\n", "cannot be read as a table in UTF-8: .*0xff"),
        ("label\ttext\n0\t" + "a" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "t.tsv", content)


def test_a_delimiter_of_two_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="delimiter"):
        opened(tmp_path / "t.csv", "label,text\n0,bad\n", delimiter="||")


def test_tokenizers_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a tokenizers\.Tokenizer, got str"):
        opened(tmp_path / "t.csv", "label,text\n0,bad\n1,a\n", TextFormat("bert-base-uncased", 5))
    with pytest.raises(DataError, match="above the tokenizer's 2 special tokens, got 2 tokens"):
        opened(tmp_path / "t.csv", "label,text\n0,bad\n1,a\n", TextFormat(word_tokenizer(), 2))


def test_a_tokenizer_file_tells_its_pad(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextFormat.from_file(tmp_path / "tokenizer.json", 8).pad_id == 0
    tokenizer.enable_padding(pad_id=7, pad_token='"')
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextFormat.from_file(tmp_path / "tokenizer.json", 8).pad_id == 7


def test_a_file_that_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"Tokenizer .* cannot be read: .* Give a tokenizer\.json"):
        TextFormat.from_file(tmp_path / "tokenizer.json", 8)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r'pip install "trady\[text\]"'):
        TextFormat.from_file(tmp_path / "tokenizer.json", 8)
