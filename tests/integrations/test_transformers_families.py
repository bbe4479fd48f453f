"""Networks of transformers, tiny: those stored sparsely compute what masked ones do."""

import copy
import os

import pytest
import torch

import regrow
from cases import assert_same

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

WORDS, CONTEXT = 48, 12
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
USUAL = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    **SPECIAL,
}
LETTERS = {"vocab_size": WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, **SPECIAL}
TEXT = {"input_ids": torch.arange(CONTEXT)[None].repeat(2, 1)}
SPEECH = {
    **{f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in (("layers", 1), ("ffn_dim", 32))},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    "max_source_positions": 8,
    "max_target_positions": 16,
    "num_mel_bins": 8,
    "decoder_start_token_id": 1,
}
IMAGE = {**USUAL, "image_size": 16, "patch_size": 4}

# name: (class, settings of its config, inputs, how many weights become sparse)
FAMILIES = {
    "gpt": ("OpenAIGPTLMHeadModel", LETTERS, TEXT, 4),
    "gpt2": ("GPT2LMHeadModel", LETTERS, TEXT, 4),
    "ctrl": ("CTRLLMHeadModel", {**LETTERS, "dff": 32}, TEXT, 6),
    "llama": ("LlamaForCausalLM", {**USUAL, "num_key_value_heads": 1}, TEXT, 8),
    "qwen2": ("Qwen2ForCausalLM", {**USUAL, "num_key_value_heads": 2}, TEXT, 8),
    "gpt-neox": ("GPTNeoXForCausalLM", USUAL, TEXT, 5),
    "bloom": (
        "BloomForCausalLM",
        {"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": WORDS, **SPECIAL},
        TEXT,
        4,
    ),
    "roberta": ("RobertaForMaskedLM", USUAL, {"input_ids": torch.arange(2, 14)[None]}, 7),
    "albert": ("AlbertForMaskedLM", {**USUAL, "embedding_size": 8}, TEXT, 8),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, **SPECIAL}
        | {"decoder_start_token_id": 0},
        {**TEXT, "labels": TEXT["input_ids"]},
        16,
    ),
    "vit": ("ViTForImageClassification", IMAGE, {"pixel_values": torch.ones(2, 3, 16, 16)}, 8),
    "whisper": (
        "WhisperForConditionalGeneration",
        {"vocab_size": WORDS, "d_model": 16, **SPEECH, **SPECIAL},
        {"input_features": torch.ones(2, 8, 16), "labels": TEXT["input_ids"]},
        18,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings", "inputs", "count"), FAMILIES.values(), ids=FAMILIES.keys())
def test_a_network_computes_the_same_in_both_storages(kind, settings, inputs, count):
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    dense = made(made.config_class(**settings)).eval()
    masked = regrow.sparsify(copy.deepcopy(dense), 0.4, backend="masked")
    stored = regrow.sparsify(copy.deepcopy(dense), masks=regrow.masks(masked), backend="cpu")
    assert len(regrow.masks(stored)) == count
    logits = [network(**inputs).logits for network in (masked, stored)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-5)
    for each in logits:
        each.square().mean().backward()
    others = [dict(network.named_parameters()) for network in (masked, stored)]
    for name in others[0].keys() & others[1].keys():
        ours, theirs = (of[name].grad for of in others)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
    back = regrow.densify(stored)
    assert_same(dict(back.state_dict()), dict(regrow.densify(masked).state_dict()))
