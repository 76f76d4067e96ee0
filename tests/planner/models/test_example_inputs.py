"""Input shapes: from text, from what a model carries, from its first layer."""

from typing import Any

import pytest
import torch
from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.example_inputs import (
    InputSpec,
    infer_specs,
    make_inputs,
    parse_input_specs,
    transformers_inputs,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3x224x224", [InputSpec((3, 224, 224))]),
        ("3X32x32, 10", [InputSpec((3, 32, 32)), InputSpec((10,))]),
        ("left:3x8x8,right:4", [InputSpec((3, 8, 8), name="left"), InputSpec((4,), name="right")]),
        ("7", [InputSpec((7,))]),
    ],
)
def test_sizes_are_read(text: str, expected: list[InputSpec]) -> None:
    assert parse_input_specs(text, nn.Linear(7, 2)) == expected


@pytest.mark.parametrize("text", ["tokens:128", "128"])
def test_a_number_is_tokens_where_the_model_embeds_them(text: str) -> None:
    assert parse_input_specs(text, nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 2))) == [InputSpec((128,), 50)]


@pytest.mark.parametrize("text", ["", "3x", "224*224", "3x224x224,", "-3x4", "1.5", "tokens"])
def test_text_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(LoadingError, match=r"is not a shape.*for instance 3x224x224"):
        parse_input_specs(text)


def test_sizes_of_zero_and_half_named_inputs_are_refused() -> None:
    with pytest.raises(LoadingError, match="has a size of 0"):
        parse_input_specs("3x0x224")
    with pytest.raises(LoadingError, match="names only some of its inputs"):
        parse_input_specs("a:3x8x8,10")


def test_tokens_for_a_model_without_embedding_are_refused() -> None:
    with pytest.raises(LoadingError, match="has no embedding"):
        parse_input_specs("tokens:8", nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(5, 4, 3), "5x224x224"),
        (nn.Conv1d(5, 4, 3), "5x128"),
        (nn.Conv3d(3, 4, 3), "3x16x112x112"),
        (nn.Linear(17, 4), "17"),
        (nn.Embedding(30, 4), "tokens:128"),
    ],
)
def test_the_first_layer_tells_and_is_named(layer: nn.Module, expected: str) -> None:
    specs, note = infer_specs(nn.Sequential(nn.Identity(), layer))
    assert str(specs[0]) == expected
    assert note == f"Input {expected} assumed from the first layer '1'; give --input to change it."


def test_what_the_model_carries_comes_first() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    model.pretrained_cfg = {"input_size": (3, 96, 160)}  # type: ignore[assignment]
    assert infer_specs(model) == ([InputSpec((1, 96, 160))], None)


def test_a_model_that_tells_nothing_asks_for_the_shape() -> None:
    with pytest.raises(LoadingError, match=r"cannot be told.*--input 3x224x224"):
        infer_specs(nn.ReLU())


def test_inputs_are_the_same_every_time_and_on_the_cpu() -> None:
    specs = [InputSpec((3, 4, 4)), InputSpec((6,), 9)]
    with torch.device("meta"):
        given: Any = make_inputs(specs)
    pictures, ids = given
    again: Any = make_inputs(specs)
    assert pictures.device.type == "cpu"
    assert torch.equal(pictures, again[0]) and torch.equal(ids, again[1])
    assert pictures.shape == (2, 3, 4, 4) and ids.dtype == torch.long and int(ids.max()) < 9


def test_named_inputs_are_keywords_and_masks_are_ones() -> None:
    specs = parse_input_specs("input_ids:6,attention_mask:6", nn.Embedding(9, 2))
    inputs: Any = make_inputs(specs)
    assert inputs["input_ids"].dtype == torch.long
    assert torch.equal(inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long))


@pytest.mark.parametrize(
    ("kind", "config", "keys"),
    [
        ("BertForSequenceClassification", "BertConfig", {"input_ids", "attention_mask", "labels"}),
        ("BertForTokenClassification", "BertConfig", {"input_ids", "attention_mask", "labels"}),
        ("BertModel", "BertConfig", {"input_ids", "attention_mask"}),
        ("LlamaForCausalLM", "LlamaConfig", {"input_ids", "attention_mask", "labels"}),
        ("ViTForImageClassification", "ViTConfig", {"pixel_values", "labels"}),
        ("T5ForConditionalGeneration", "T5Config", {"input_ids", "attention_mask", "labels"}),
        ("T5Model", "T5Config", {"input_ids", "attention_mask", "decoder_input_ids"}),
    ],
)
def test_transformers_inputs_fit_the_class_and_bring_labels_for_its_loss(
    kind: str, config: str, keys: set[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = dict(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    if config == "T5Config":
        sizes = dict(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=50, decoder_start_token_id=0)
    made = getattr(transformers, config)(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = getattr(transformers, kind)(made)
    inputs: Any = transformers_inputs(model, None)
    assert set(inputs) == keys
    outputs = model(**inputs)
    assert ("labels" in keys) == (outputs.get("loss") is not None)
