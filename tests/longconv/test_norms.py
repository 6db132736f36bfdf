"""Norms and blocks: batch norm over real positions, where norms stand, running statistics under checkpointing."""

import copy

import pytest
import torch
import transformers
from numerics import assert_close

from longconv.layers import LAYERS, build_layer
from longconv.models import LongConvConfig, LongConvForSequenceClassification, LongConvModel
from longconv.models.blocks import TiedDropout
from longconv.models.norms import BatchNorm

transformers.utils.logging.disable_progress_bar()
D = 8


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**options):
    defaults = {
        "vocab_size": 23,
        "hidden_size": D,
        "num_hidden_layers": 2,
        "mixers": "sgconv",
        "mixer_options": {"sgconv": {"bidirectional": True, "output": "glu"}},
        "max_position_embeddings": 32,
        "initializer_range": None,
        "num_labels": 3,
    }
    return LongConvConfig(**{**defaults, **options})


def norms(dtype=torch.float32, eps=1e-3):
    """Ours and torch's, with the same parameters and running statistics, away from where they start."""
    ours, theirs = BatchNorm(D, eps=eps).to(dtype), torch.nn.BatchNorm1d(D, eps=eps).to(dtype)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    for tensor in (ours.weight.data, ours.bias.data, ours.running_mean, ours.running_var):
        tensor += torch.rand_like(tensor)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def assert_same_statistics(ours, theirs):
    assert ours.num_batches_tracked == theirs.num_batches_tracked
    for name in ("running_mean", "running_var"):
        assert_close(getattr(ours, name), getattr(theirs, name).double(), getattr(ours, name).dtype, name)


def some_mask(B, L):
    mask = torch.rand(B, L) < 0.6
    mask[0, 0] = mask[-1, -1] = True
    return mask


# BatchNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (2, 7)])
def test_batch_norm_without_padding_is_torchs(shape, dtype):
    ours, theirs = norms(dtype)
    for _ in range(3):
        x = (1 + torch.randn(*shape, D, dtype=dtype)).requires_grad_()
        y, expected = ours(x), theirs(x.mT).mT
        assert_close(y, expected.double(), dtype)
        weight = torch.randn_like(y)
        inputs = [[x, *norm.parameters()] for norm in (ours, theirs)]
        for got, want in zip(
            torch.autograd.grad((y * weight).sum(), inputs[0]),
            torch.autograd.grad((expected * weight).sum(), inputs[1]),
            strict=True,
        ):
            assert_close(got, want.double(), dtype)
        assert_same_statistics(ours, theirs)
    x = torch.randn(*shape, D, dtype=dtype)
    assert_close(ours.eval()(x), theirs.eval()(x.mT).mT.double(), dtype)
    assert_close(ours(x[:, 0]), theirs(x[:, 0]).double(), dtype)  # a token
    assert ours.num_batches_tracked == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("padding", [0.0, float("nan"), float("inf")], ids=str)
def test_batch_norm_counts_real_positions_only(padding, dtype):
    """As torch's on the real positions alone; what is in the others does not matter."""
    ours, theirs = norms(dtype)
    for B, L in ((1, 4), (3, 5), (4, 31)):
        mask, x = some_mask(B, L), 3 + torch.randn(B, L, D, dtype=dtype)
        x = x.masked_fill(~mask[..., None], padding).requires_grad_()
        rows = x.detach()[mask].requires_grad_()
        y, expected = ours(x, mask), theirs(rows)
        assert_close(y[mask], expected.double(), dtype)
        assert y.isfinite().all()
        weight = torch.randn_like(expected)
        got = torch.autograd.grad((y[mask] * weight).sum(), [x, *ours.parameters()])
        want = torch.autograd.grad((expected * weight).sum(), [rows, *theirs.parameters()])
        assert_close(got[0][mask], want[0].double(), dtype)
        assert not got[0][~mask].any()
        for mine, other in zip(got[1:], want[1:], strict=True):
            assert_close(mine, other.double(), dtype)
        assert_same_statistics(ours, theirs)
    assert_close(ours.eval()(x, mask)[mask], theirs.eval()(rows).double(), dtype)


def test_batch_norm_gradcheck():
    ours, _ = norms(torch.float64)
    x, mask = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True), some_mask(2, 4)
    assert torch.autograd.gradcheck(lambda x: ours(x, mask), x)
    assert torch.autograd.gradcheck(ours, x)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_in_half_precision(masked):
    ours, _ = norms(torch.bfloat16)
    wide = copy.deepcopy(ours).double()
    x, mask = torch.randn(4, 30, D).bfloat16(), some_mask(4, 30) if masked else None
    y, expected = ours(x, mask), wide(x.double(), mask)
    assert y.dtype == torch.bfloat16
    assert_close(y, expected)
    assert_close(ours.running_mean, wide.running_mean)


def test_two_forward_passes_before_a_backward_pass():
    """The second changes the running statistics, of which the first one's gradients must not know."""
    ours, _ = norms()
    x, mask = torch.randn(2, 5, D, requires_grad=True), some_mask(2, 5)
    expected = torch.autograd.grad(ours(x)[0].square().sum(), x)[0]
    y = ours(x)
    ours(x, mask), ours(x)
    assert torch.equal(torch.autograd.grad(y[0].square().sum(), x)[0], expected)


def test_batch_norm_in_training_needs_sequences():
    ours, _ = norms()
    with pytest.raises(ValueError, match=r"whole sequences \(B, L, D\), got shape \(2, 8\): call eval"):
        ours(torch.randn(2, D))
    model = LongConvModel(config(norm="batch"))
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 5)
    mask[1, 2] = 1
    for options in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:1, :1]}):
        with pytest.raises(ValueError, match="at least two real positions in a batch, got 1"):
            model(**options)
        assert model.eval()(**options).last_hidden_state.isfinite().all()
        model.train()
    causal = LongConvModel(config(norm="batch", mixer_options=None))
    with pytest.raises(ValueError, match=r"batch norms in training have no state.*call eval"):
        causal(ids, use_cache=True)
    cache = causal.eval()(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="batch norm in training needs whole sequences"):
        causal.train().layers[0].step(torch.randn(2, D), cache.states[0])


def test_synchronised_batch_norms_of_torch_leave_it_alone():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(LongConvModel(config(norm="batch")))
    assert isinstance(model.layers[0].mixer_norm, BatchNorm)


# Blocks


@pytest.mark.parametrize("intermediate", [None, 0], ids=["mlp", "bare"])
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", ["rms", "layer", "batch"])
def test_a_model_is_its_definition(norm, position, intermediate):
    """In training, with torch's norms on real positions."""
    torch.manual_seed(3)
    kinds = {"rms": torch.nn.RMSNorm, "layer": torch.nn.LayerNorm, "batch": torch.nn.BatchNorm1d}
    options = {"norm": norm, "norm_position": position, "intermediate_size": intermediate, "norm_eps": 1e-3}
    model = LongConvModel(config(**options)).double()
    ids, mask = torch.randint(23, (3, 12)), torch.ones(3, 12, dtype=torch.bool)
    mask[1, 7:] = mask[2, :3] = False
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def normed(ours, x):
        theirs = kinds[norm](D, eps=1e-3).double()
        theirs.load_state_dict(ours.state_dict())
        y = torch.zeros_like(x)
        y[mask] = theirs(x[mask])
        return y

    x = model.embed_tokens(ids)
    for block in model.layers:
        branches = [(block.mixer_norm, lambda u, block=block: block.mixer(u, mask=mask))]
        if intermediate is None:
            assert block.mlp.down.in_features == 2 * D
            branches.append((block.mlp_norm, block.mlp))
        else:
            assert {name for name, _ in block.named_children()} == {"mixer_norm", "mixer", "dropout"}
        for ours, branch in branches:
            x = x + branch(normed(ours, x)) if position == "pre" else normed(ours, x + branch(x))
    if position == "pre":
        x = normed(model.norm, x)
    else:
        assert not list(model.norm.parameters())
    got = model(ids, attention_mask=mask).last_hidden_state
    assert_close(got[mask], x[mask])


def test_a_scale_norm_has_one_weight():
    model = LongConvModel(config(norm="scale", norm_eps=1e-3)).double()
    norm, x = model.norm, torch.randn(4, 7, D, dtype=torch.float64)
    norm.weight.data.fill_(1.7)
    assert norm.weight.shape == (1,)
    assert_close(norm(x), 1.7 * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt())


@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_mixer_with_an_inner_norm_has_none_in_front(position):
    options = {"mega": {"norm": "scalenorm", "zdim": 4}}
    model = LongConvModel(config(mixers="mega", mixer_options=options, norm_position=position)).double().eval()
    block, x = model.layers[0], torch.randn(2, 9, D, dtype=torch.float64)
    mixed = x + block.mixer(x)
    if position == "pre":
        assert not list(block.mixer_norm.parameters())
        assert_close(block(x), mixed + block.mlp(block.mlp_norm(mixed)))
    else:
        y = block.mixer_norm(mixed)
        assert_close(block(x), block.mlp_norm(y + block.mlp(y)))
    state = block.mixer.init_state(2, dtype=x.dtype)
    steps = []
    for x_t in x.unbind(1):
        y_t, state = block.step(x_t, state)
        steps.append(y_t)
    assert_close(torch.stack(steps, 1), block(x))


def test_dropout_of_channels():
    torch.manual_seed(0)
    drop, x = TiedDropout(0.4), torch.randn(64, 10, 128)
    y = drop(x)
    kept = (y != 0).all(1)
    assert torch.equal(kept, (y != 0).any(1))  # at all times or at none
    assert_close(y, torch.where(kept[:, None], x / 0.6, 0.0).double(), torch.float32)
    assert abs(kept.float().mean() - 0.6) < 0.02  # 3.7 standard deviations
    assert torch.equal(drop.eval()(x), x)
    model = LongConvModel(config(dropout=0.3, tie_dropout=True, embedding_dropout=0.1))
    assert [type(m) for m in (model.dropout, model.layers[0].dropout)] == [TiedDropout, TiedDropout]
    assert (model.dropout.p, model.layers[0].dropout.p) == (0.1, 0.3)
    model = LongConvModel(config(dropout=0.3))
    assert (type(model.dropout), model.dropout.p) == (torch.nn.Dropout, 0.3)
    assert LongConvModel(config(dropout=0.3, embedding_dropout=0.0)).dropout.p == 0


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("sgconv", {"bidirectional": True}),
        ("micro_tcn", {"num_blocks": 2, "kernel_size": 3, "dilation_growth": 2}),  # it has batch norms of its own
    ],
)
def test_checkpointing_counts_a_batch_once(mixer, options, reentrant, masked):
    """The same gradients, and running statistics as after as many batches as there were."""
    kind = {"norm": "batch", "norm_position": "post", "mixers": mixer, "mixer_options": {mixer: options}}
    plain = LongConvForSequenceClassification(config(**kind)).train()
    saved = copy.deepcopy(plain)
    saved.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    mask = None
    if masked:
        mask = torch.ones(4, 20, dtype=torch.long)
        mask[1, 12:] = 0
    calls = []
    saved.model.layers[0].mixer.register_forward_hook(lambda *_: calls.append(1))
    batches = [(torch.randint(23, (4, 20)), torch.randint(3, (4,))) for _ in range(4)]
    for model in (plain, saved):
        for ids, labels in batches[:2]:
            model(ids, attention_mask=mask, labels=labels).loss.backward()
        sum(model(ids, attention_mask=mask, labels=labels).loss for ids, labels in batches[2:]).backward()
    assert len(calls) == 8
    for (name, one), other in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert_close(other.grad, one.grad.double(), torch.float32, name)
    buffers = dict(saved.named_buffers())
    counts = [value for name, value in buffers.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(value == 4 for value in counts)
    for name, one in plain.named_buffers():
        assert torch.equal(one, buffers[name]), name


# Initialisation


def rms(x):
    return x.detach().double().square().mean().sqrt().item()


@pytest.mark.parametrize("mixer", [name for name in LAYERS if name != "hyena_nd"])
def test_initializer_range_none_leaves_everything_to_its_module(mixer):
    """The model's linear maps as torch.nn.Linear makes them; the mixer as it is alone."""
    torch.manual_seed(5)
    options = {
        "attention": {"num_heads": 2},
        "multi_hyena": {"num_heads": 4},
        "tcn": {"num_blocks": 2, "kernel_size": 3},
        "lightconv": {"kernel_size": 5, "num_heads": 2},
        "dynamicconv": {"kernel_size": 5, "num_heads": 2},
    }.get(mixer, {})
    bare = build_layer(mixer, 64, 32, **options)
    model = LongConvModel(
        config(hidden_size=64, mixers=mixer, mixer_options={mixer: options}, num_hidden_layers=1, input_size=16)
    )
    for linear in (model.input_proj, model.layers[0].mlp.up, model.layers[0].mlp.down):
        bound = linear.in_features**-0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert linear.bias is None or linear.bias.any()
    compared = [name for name, alone in bare.named_parameters() if alone.numel() >= 128]
    assert compared
    for name in compared:
        assert rms(model.layers[0].mixer.get_parameter(name)) == pytest.approx(rms(bare.get_parameter(name)), rel=0.15)


def test_a_mixer_without_parameters_of_its_own_initialises_its_parts():
    """DynamicConv's are Xavier-uniform, whatever the model's initializer_range."""
    options = {"dynamicconv": {"kernel_size": 5, "num_heads": 2}}
    model = LongConvModel(
        config(hidden_size=64, mixers="dynamicconv", mixer_options=options, initializer_range=0.7, num_hidden_layers=1)
    )
    out = model.layers[0].mixer.out_proj.weight
    bound = (6 / (out.shape[0] + out.shape[1])) ** 0.5
    assert 0.9 * bound < out.abs().max() <= bound


def test_initialisation_of_what_writes_to_the_residual_stream():
    wide = {"hidden_size": 128, "mixers": "attention", "mixer_options": None, "num_hidden_layers": 8}

    def std(linear):
        return linear.weight.std().item()

    for options, expected in (
        ({}, 0.1 / 4),  # two branches in each of 8 blocks
        ({"intermediate_size": 0}, 0.1 / 8**0.5),
        ({"scale_residual_init": False}, 0.1),
    ):
        block = LongConvModel(config(**wide, initializer_range=0.1, **options)).layers[0]
        assert std(block.mixer.out_proj) == pytest.approx(expected, rel=0.05)
        assert std(block.mixer.in_proj) == pytest.approx(0.1, rel=0.05)
        if block.mlp is not None:
            assert std(block.mlp.down) == pytest.approx(expected, rel=0.05)
    # The output GLU of a long convolution is its paper's in any case.
    for options in ({}, {"initializer_range": None}):
        glu = {"sgconv": {"output": "glu"}}
        model = LongConvModel(config(**{**wide, "mixers": "sgconv", "mixer_options": glu, **options}))
        out = model.layers[0].mixer.out_proj
        assert out.out_features == 256
        assert std(out) == pytest.approx((3 * 128) ** -0.5, rel=0.05)
    # And embeddings are torch's.
    assert std(LongConvModel(config(vocab_size=200)).embed_tokens) == pytest.approx(1, rel=0.1)
