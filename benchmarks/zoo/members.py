"""The zoo: one small member of every family, with inputs of two samples. Random weights, nothing is downloaded."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

BATCH: Final = 2
_VOCABULARY: Final = 128
_TOKENS: Final = 12
#: Asks at each layer whether to drop it, and does not.
_LAYER_DROP: Final = 1e-9

Built = tuple[nn.Module, Any]


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Args:
        name: ``torchvision:resnet18``.
        input: Its input, as the table shows it.
        build: Makes the module and example inputs of :data:`BATCH` samples.
    """

    name: str
    input: str
    build: Callable[[], Built]


# name -> pixels of a side; one of the smallest members of each module of timm.models
_TIMM: Final[dict[str, int]] = {
    "beit_base_patch16_224": 224,
    "botnet26t_256": 256,
    "halonet26t": 256,
    "lambda_resnet26t": 256,
    "repvgg_a0": 64,
    "mobileone_s0": 64,
    "bat_resnext26ts": 256,
    "cait_xxs24_224": 224,
    "coat_lite_tiny": 224,
    "convit_tiny": 224,
    "convmixer_768_32": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "cpubone_b0_bfrobust": 64,
    "crossvit_tiny_240": 240,
    "csatv2": 512,
    "cspresnet50": 64,
    "cspnext_tiny": 64,
    "davit_tiny": 224,
    "deepseek_vit_412m": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "densenet121": 64,
    "dla46_c": 64,
    "dpn48b": 64,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "efficientnet_b0": 64,
    "tf_efficientnet_lite0": 64,
    "efficientvim_m1": 224,
    "efficientvit_b0": 64,
    "efficientvit_m0": 224,
    "eva02_tiny_patch14_224": 224,
    "fasternet_t0": 64,
    "fastvit_t8": 64,
    "focalnet_tiny_srf": 224,
    "gcvit_xxtiny": 224,
    "gemma4_vit_167m": 224,
    "ghostnet_050": 64,
    "ghostnetv2_100": 64,
    "hardcorenas_a": 64,
    "hgnetv2_b0": 64,
    "hiera_tiny_224": 224,
    "sam2_hiera_tiny": 224,
    "hrnet_w18_small": 64,
    "iformer_t": 64,
    "inception_next_atto": 64,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
    "lcnetv2_small": 64,
    "levit_128s": 224,
    "lowformer_b0": 64,
    "mambaout_femto": 64,
    "coatnet_nano_rw_224": 224,
    "maxvit_rmlp_pico_rw_256": 256,
    "poolformer_s12": 64,
    "caformer_s18": 64,
    "mixer_s32_224": 224,
    "gmlp_ti16_224": 224,
    "resmlp_12_224": 224,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "mobilenetv5_300m": 256,
    "mobilevit_xxs": 64,
    "mobilevitv2_050": 64,
    "mvitv2_tiny": 224,
    "naflexvit_base_patch16_gap": 224,
    "nasnetalarge": 96,
    "jx_nest_tiny": 224,
    "nextvit_small": 64,
    "nf_resnet26": 64,
    "dm_nfnet_f0": 64,
    "pit_ti_224": 224,
    "pnasnet5large": 96,
    "pvt_v2_b0": 64,
    "qwen3_vit_306m": 224,
    "rdnet_tiny": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "repghostnet_050": 64,
    "repvit_m0_9": 64,
    "res2net50_14w_8s": 64,
    "resnest14d": 64,
    "resnet10t": 64,
    "ecaresnet26t": 64,
    "resnetv2_50x1_bit": 64,
    "rexnet_100": 64,
    "selecsls42": 64,
    "legacy_seresnet18": 64,
    "sequencer2d_s": 224,
    "shvit_s1": 224,
    "skresnet18": 64,
    "starnet_s1": 64,
    "swiftformer_xs": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
    "swinv2_cr_tiny_224": 224,
    "tiny_vit_5m_224": 224,
    "tnt_s_patch16_224": 224,
    "tresnet_m": 64,
    "twins_svt_small": 224,
    "vgg11_bn": 64,
    "visformer_tiny": 224,
    "vit_tiny_patch16_224": 224,
    "vit_tiny_r_s16_p8_224": 224,
    "vit_relpos_small_patch16_224": 224,
    "samvit_base_patch16_224": 224,
    "vitamin_small_224": 224,
    "volo_d1_224": 224,
    "ese_vovnet19b_slim_dw": 64,
    "legacy_xception": 96,
    "xception41": 96,
    "xcit_nano_12_p16_224": 224,
}

_TORCHVISION: Final[dict[str, int]] = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vit_b_32": 224,
    "wide_resnet50_2": 64,
}
_SEGMENTATION: Final = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
_VIDEO: Final[dict[str, tuple[int, int]]] = {
    "r3d_18": (8, 32),
    "mc3_18": (8, 32),
    "r2plus1d_18": (8, 32),
    "s3d": (16, 224),
    "mvit_v2_s": (16, 224),
    "swin3d_t": (8, 64),
}


def members() -> Iterator[Member]:
    """Every member, in the order of the table."""
    for name, pixels in _TORCHVISION.items():
        yield _picture_member("torchvision", name, pixels, _torchvision(name))
    for name in _SEGMENTATION:
        yield _picture_member("torchvision", name, 64, _torchvision(name, ".segmentation", weights_backbone=None))
    for name, (frames, pixels) in _VIDEO.items():
        yield _video_member(name, frames, pixels)
    for name, pixels in _TIMM.items():
        yield _picture_member("timm", name, pixels, _timm(name))
    for name, (model, config, inputs) in _transformers().items():
        yield Member(f"transformers:{name}", _shapes_text(inputs), _from_config(model, config, inputs))


def _picture_member(source: str, name: str, pixels: int, make: Callable[[], nn.Module]) -> Member:
    def build() -> Built:
        return make(), torch.zeros(BATCH, 3, pixels, pixels)

    return Member(f"{source}:{name}", f"3x{pixels}x{pixels}", build)


def _video_member(name: str, frames: int, pixels: int) -> Member:
    make = _torchvision(name, ".video")

    def build() -> Built:
        return make(), torch.zeros(BATCH, 3, frames, pixels, pixels)

    return Member(f"torchvision:{name}", f"3x{frames}x{pixels}x{pixels}", build)


def _torchvision(name: str, room: str = "", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = importlib.import_module(f"torchvision.models{room}")
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        model: nn.Module = models.__dict__[name](weights=None, **options)
        return model

    return make


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False)
        return model

    return make


def _from_config(model: str, config: Callable[[Any], Any], inputs: dict[str, Tensor]) -> Callable[[], Built]:
    def build() -> Built:
        transformers = importlib.import_module("transformers")
        return getattr(transformers, model)(config(transformers)), inputs

    return build


def _shapes_text(inputs: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, tensor.shape[1:])) or 'scalar'}" for name, tensor in inputs.items())


def _ids(tokens: int = _TOKENS) -> Tensor:
    return torch.randint(5, _VOCABULARY, (BATCH, tokens), generator=torch.Generator().manual_seed(0))


def _padded() -> Tensor:
    """A mask that masks: given one of ones, transformers looks at its values and drops it."""
    return (torch.arange(_TOKENS) < _TOKENS - 2).long().expand(BATCH, -1).contiguous()


def _transformers() -> dict[str, tuple[str, Callable[[Any], Any], dict[str, Tensor]]]:
    """Model class, configuration and inputs by name."""
    small = {"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = {**small, "intermediate_size": 64, "max_position_embeddings": 32}
    decoder = {**encoder, "num_key_value_heads": 2, "use_cache": False}
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    experts = {"experts_implementation": "grouped_mm", "num_experts_per_tok": 2}
    text = {"input_ids": _ids(), "attention_mask": _padded()}
    causal = {"input_ids": _ids(), "labels": _ids()}
    both = {"input_ids": _ids(), "decoder_input_ids": _ids(8), "labels": _ids(8)}
    picture = {"pixel_values": torch.zeros(BATCH, 3, 32, 32)}
    return {
        "bert": ("BertForSequenceClassification", lambda t: t.BertConfig(**encoder), text),
        "roberta": ("RobertaForSequenceClassification", lambda t: t.RobertaConfig(**encoder), text),
        "distilbert": (
            "DistilBertForSequenceClassification",
            lambda t: t.DistilBertConfig(vocab_size=_VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
            text,
        ),
        "albert": (
            "AlbertForSequenceClassification",
            lambda t: t.AlbertConfig(**encoder, embedding_size=16),
            text,
        ),
        "electra": (
            "ElectraForSequenceClassification",
            lambda t: t.ElectraConfig(**encoder, embedding_size=16),
            text,
        ),
        "deberta-v2": (
            "DebertaV2ForSequenceClassification",
            lambda t: t.DebertaV2Config(**encoder, relative_attention=True, pos_att_type=["p2c", "c2p"]),
            text,
        ),
        "modernbert": (
            "ModernBertForSequenceClassification",
            lambda t: t.ModernBertConfig(**encoder, pad_token_id=0, bos_token_id=1, eos_token_id=2),
            text,
        ),
        "vit": ("ViTForImageClassification", lambda t: t.ViTConfig(**vision), picture),
        "swin": (
            "SwinForImageClassification",
            lambda t: t.SwinConfig(
                image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
            ),
            picture,
        ),
        "convnextv2": (
            "ConvNextV2ForImageClassification",
            lambda t: t.ConvNextV2Config(hidden_sizes=[8, 16, 32, 32], depths=[1, 1, 1, 1]),
            picture,
        ),
        "gpt2": (
            "GPT2LMHeadModel",
            lambda t: t.GPT2Config(vocab_size=_VOCABULARY, n_embd=32, n_layer=2, n_head=4, use_cache=False),
            causal,
        ),
        "opt": (
            "OPTForCausalLM",
            lambda t: t.OPTConfig(
                **encoder, ffn_dim=64, word_embed_proj_dim=32, layerdrop=_LAYER_DROP, use_cache=False
            ),
            causal,
        ),
        "bloom": ("BloomForCausalLM", lambda t: t.BloomConfig(**small, use_cache=False), causal),
        "llama": ("LlamaForCausalLM", lambda t: t.LlamaConfig(**decoder), causal),
        "gemma2": ("Gemma2ForCausalLM", lambda t: t.Gemma2Config(**decoder, head_dim=8), causal),
        "qwen3": ("Qwen3ForCausalLM", lambda t: t.Qwen3Config(**decoder, head_dim=8), causal),
        "phi": ("PhiForCausalLM", lambda t: t.PhiConfig(**decoder), causal),
        "mixtral": (
            "MixtralForCausalLM",
            lambda t: t.MixtralConfig(**decoder, **experts, num_local_experts=4),
            causal,
        ),
        "qwen3-moe": (
            "Qwen3MoeForCausalLM",
            lambda t: t.Qwen3MoeConfig(**decoder, **experts, head_dim=8, num_experts=4, moe_intermediate_size=32),
            causal,
        ),
        "t5": (
            "T5ForConditionalGeneration",
            lambda t: t.T5Config(
                vocab_size=_VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, use_cache=False
            ),
            both,
        ),
        "bart": (
            "BartForConditionalGeneration",
            lambda t: t.BartConfig(
                vocab_size=_VOCABULARY,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_position_embeddings=32,
                encoder_layerdrop=_LAYER_DROP,
                decoder_layerdrop=_LAYER_DROP,
                use_cache=False,
            ),
            both | {"decoder_attention_mask": _padded()[:, -8:]},
        ),
        "whisper": (
            "WhisperForConditionalGeneration",
            lambda t: t.WhisperConfig(
                vocab_size=_VOCABULARY,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_source_positions=50,
                max_target_positions=32,
                num_mel_bins=16,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                use_cache=False,
            ),
            {"input_features": torch.zeros(BATCH, 16, 100), "labels": _ids(8)},
        ),
        "wav2vec2": (
            "Wav2Vec2ForSequenceClassification",
            lambda t: t.Wav2Vec2Config(
                **small,
                intermediate_size=64,
                conv_dim=(16,) * 7,
                num_conv_pos_embeddings=16,
                apply_spec_augment=False,
                layerdrop=_LAYER_DROP,
            ),
            {"input_values": torch.zeros(BATCH, 4000)},
        ),
        "clip": (
            "CLIPForImageClassification",
            lambda t: t.CLIPConfig(vision_config=vision, text_config=encoder),
            picture,
        ),
    }
