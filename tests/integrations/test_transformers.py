"""The Trainer of transformers with tiny networks: training, going on, saving and loading."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch

import regrow
from cases import assert_same, each_storage
from regrow.storage import Storage, sparse_weights

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
integration = pytest.importorskip("regrow.integrations.transformers")

STEPS, STOP, VOCABULARY, CONTEXT = 9, 5, 48, 12

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, n_positions=CONTEXT, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0
    ),
    "bert": lambda: transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=CONTEXT,
    ),
}
KINDS = {"gpt2": transformers.GPT2LMHeadModel, "bert": transformers.BertForMaskedLM}
each_kind = pytest.mark.parametrize("kind", KINDS)


class Pieces(torch.utils.data.Dataset):
    """Random pieces of text, the same each time."""

    def __len__(self):
        return 64

    def __getitem__(self, at):
        piece = torch.randint(VOCABULARY, (CONTEXT,), generator=torch.Generator().manual_seed(at))
        return {"input_ids": piece, "labels": piece}


class StopAfter(transformers.TrainerCallback):
    """Save and stop after some steps, as a training that is cut off."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **others):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def sparse(kind, storage, *, seed=0, density=0.3, **settings):
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.update(settings)
    return regrow.sparsify(KINDS[kind](config), density, backend=storage, seed=seed)


def method(**settings):
    return lambda steps: regrow.sparse_momentum(every=3, steps=steps, **settings)


def trainer(model, folder, *callbacks, **settings):
    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "dataloader_pin_memory": False,
            **settings,
        },
    )
    return transformers.Trainer(model, arguments, train_dataset=Pieces(), callbacks=list(callbacks))


def outputs(model):
    with torch.no_grad():
        return model.eval()(torch.arange(CONTEXT)[None]).logits


@each_kind
def test_projections_are_sparse_and_embeddings_and_the_head_tied_to_them_are_not(kind):
    model = sparse(kind, "auto")
    names = regrow.masks(model)
    assert len(names) == {"gpt2": 4, "bert": 7}[kind]
    tied = model.get_output_embeddings().weight
    assert tied is model.get_input_embeddings().weight
    numel = sum(mask.numel() for mask in names.values())
    assert sum(int(mask.sum()) for mask in names.values()) == round(0.3 * numel)


@pytest.mark.parametrize(
    ("storage", "growth"),
    [("masked", None), ("cpu", None), ("cpu", regrow.growth.candidates(2, 3))],
    ids=["masked", "window", "candidates"],
)
def test_a_training_that_goes_on_ends_as_one_that_was_not_cut_off(tmp_path, storage, growth):
    callback = integration.TopologyCallback(method(growth=growth))
    whole = trainer(sparse("gpt2", storage), tmp_path / "whole", callback)
    whole.train()
    assert callback.topology.step == STEPS

    first = trainer(
        sparse("gpt2", storage), tmp_path / "cut", integration.TopologyCallback(method(growth=growth)), StopAfter(STOP)
    )
    first.train()
    other = sparse("gpt2", storage, seed=7)
    again = integration.TopologyCallback(method(growth=growth))
    second = trainer(other, tmp_path / "cut", again)
    second.train(resume_from_checkpoint=True)
    assert again.topology.step == STEPS
    assert_same(dict(second.model.state_dict()), dict(whole.model.state_dict()))
    assert_same(second.optimizer.state_dict(), whole.optimizer.state_dict())
    assert_same(regrow.masks(other), regrow.masks(whole.model))
    moved = [not torch.equal(mask, regrow.masks(other)[name]) for name, mask in regrow.masks(first.model).items()]
    assert any(moved)


@pytest.mark.slow
@each_kind
@each_storage
@pytest.mark.parametrize("name", ["set", "rigl", "sparse-momentum", "static"])
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_every_kind_of_training_goes_on_from_every_place(tmp_path, kind, storage, name, stop):
    def run(folder, seed, *callbacks, resume=False):
        recipe = regrow.methods.METHODS[name](every=3, steps=STEPS)
        made = trainer(sparse(kind, storage, seed=seed), folder, integration.TopologyCallback(recipe), *callbacks)
        made.train(resume_from_checkpoint=resume or None)
        return made

    whole = run(tmp_path / "whole", 0)
    run(tmp_path / "cut", 0, StopAfter(stop))
    second = run(tmp_path / "cut", 7, resume=True)
    assert_same(dict(second.model.state_dict()), dict(whole.model.state_dict()))
    assert_same(second.optimizer.state_dict(), whole.optimizer.state_dict())


def test_both_storages_end_with_the_same_masks(tmp_path):
    ends = []
    for storage in (each.backend for each in Storage):
        # What dropout drops depends on the layout of activations.
        model = sparse("bert", storage, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer(model, tmp_path / storage, integration.TopologyCallback(method()), max_steps=4).train()
        ends.append(model)
    assert_same(*map(regrow.masks, ends))
    torch.testing.assert_close(outputs(ends[0]), outputs(ends[1]), rtol=1e-3, atol=1e-4)


@each_storage
def test_under_autocast_to_bfloat16_absent_weights_stay_away_and_topology_moves(tmp_path, storage):
    model = sparse("gpt2", storage)
    before = regrow.masks(model)
    trainer(model, tmp_path, integration.TopologyCallback(method()), bf16=True).train()
    after = regrow.masks(model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert sum(map(int, map(torch.count_nonzero, before.values()))) == sum(
        map(int, map(torch.count_nonzero, after.values()))
    )
    for weight in sparse_weights(model).values():
        assert not weight.nonzero_absent()
        assert weight.weight.dtype == torch.float32


def test_a_rule_of_every_step_trains_and_is_refused_where_it_is_to_go_on(tmp_path):
    def made(*callbacks):
        callback = integration.TopologyCallback(regrow.top_kast(every=2, density=0.25))
        return trainer(sparse("gpt2", "masked", density=1.0), tmp_path, callback, *callbacks)

    first = made(StopAfter(3))
    first.train()
    assert regrow.summary(first.model).density == pytest.approx(0.25, abs=1e-3)
    with pytest.raises(ValueError, match="cannot resume in the Trainer"):
        made().train(resume_from_checkpoint=True)


def test_going_on_without_a_state_of_the_topology_is_refused(tmp_path):
    trainer(sparse("gpt2", "masked"), tmp_path, StopAfter(2)).train()
    second = trainer(sparse("gpt2", "masked"), tmp_path, integration.TopologyCallback(method()))
    with pytest.raises(ValueError, match="step 2 holds no state of the topology, whose schedule would begin again"):
        second.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("sharding", ["fsdp", "deepspeed"])
def test_sharded_parameters_are_refused(sharding):
    model, settings = sparse("gpt2", "masked"), SimpleNamespace(**{sharding: ["full_shard"]})
    callback, optimizer = integration.TopologyCallback(method()), torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=f"{sharding} shards parameters"):
        callback.on_train_begin(settings, None, None, model=model, optimizer=optimizer)


def test_a_callback_that_the_trainer_makes_anew_is_refused(tmp_path):
    trainer(sparse("gpt2", "masked"), tmp_path, integration.TopologyCallback(method()), StopAfter(2)).train()
    second = trainer(
        sparse("gpt2", "masked"),
        tmp_path,
        integration.TopologyCallback(method()),
        restore_callback_states_from_checkpoint=True,
    )
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint"):
        second.train(resume_from_checkpoint=True)


def test_a_second_training_begins_the_schedule_again(tmp_path):
    callback = integration.TopologyCallback(method())
    made = trainer(sparse("gpt2", "cpu"), tmp_path, callback, max_steps=4)
    made.train()
    made.train()
    assert callback.topology.step == 4
    regrow.densify(made.model)


@each_kind
@each_storage
def test_a_saved_model_is_loaded_dense_and_sparse(tmp_path, kind, storage):
    model = sparse(kind, storage)
    integration.save_pretrained(model, tmp_path)
    plain = KINDS[kind].from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(plain), outputs(model), rtol=1e-5, atol=1e-6)
    for target in (each.backend for each in Storage):
        again = integration.from_pretrained(KINDS[kind], tmp_path, sparsify={"backend": target})
        assert_same(regrow.masks(again), regrow.masks(model))
        assert_same(dict(regrow.dense_state_dict(again)), dict(regrow.dense_state_dict(model)))
        torch.testing.assert_close(outputs(again), outputs(model), rtol=1e-5, atol=1e-6)


@each_storage
def test_the_model_of_a_trainer_saves_itself_so_that_it_can_be_loaded(tmp_path, storage):
    made = trainer(sparse("gpt2", storage), tmp_path / "run", integration.TopologyCallback(method()), max_steps=2)
    made.train()
    expected = outputs(made.model)
    made.save_model(tmp_path / "saved")
    copy.deepcopy(made.model).save_pretrained(tmp_path / "copied")
    for folder in ("saved", "copied"):
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        torch.testing.assert_close(outputs(plain), expected, rtol=1e-5, atol=1e-6)
        assert_same(integration.load_masks(tmp_path / folder), regrow.masks(made.model))
    regrow.densify(made.model)
    made.model.save_pretrained(tmp_path / "dense")
    plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense")
    assert_same(dict(plain.state_dict()), dict(made.model.state_dict()))


def test_the_body_of_a_saved_model_takes_its_masks(tmp_path):
    model = sparse("gpt2", "cpu")
    integration.save_pretrained(model, tmp_path)
    body = integration.from_pretrained(transformers.GPT2Model, tmp_path)
    assert_same(regrow.masks(body), regrow.masks(model.transformer))


def test_what_would_come_out_random_or_has_no_masks_is_refused(tmp_path):
    model = sparse("gpt2", "cpu")
    model.save_pretrained(tmp_path / "stored")
    with pytest.raises(ValueError, match="would leave them random"):
        integration.from_pretrained(transformers.GPT2LMHeadModel, tmp_path / "stored")
    regrow.densify(model).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="holds no masks"):
        integration.from_pretrained(transformers.GPT2LMHeadModel, tmp_path / "dense")


def test_gpt2_has_the_layers_that_the_library_knows_by_name():
    from transformers.pytorch_utils import Conv1D

    from regrow.nn.kinds import is_inputs_first_linear

    assert is_inputs_first_linear(Conv1D(3, 2))
    layer = regrow.sparsify(torch.nn.Sequential(Conv1D(3, 2)), 0.5, backend="cpu")
    assert repr(regrow.densify(layer)[0]) == "Conv1D(nf=3, nx=2)"
