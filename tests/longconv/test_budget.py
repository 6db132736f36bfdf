"""Orders by a budget: the knapsack, error curves, sensitivities, and the search end to end."""

import itertools
import json

import pytest
import torch
from numerics import assert_close, relative_l2

from longconv.distill import Recorded, compare, distill
from longconv.distill.budget import allocate, distill_to_budget, distill_to_tolerance
from longconv.distill.curves import ErrorCurves, error_curves, ladder
from longconv.distill.knapsack import choose
from longconv.distill.sensitivity import sensitivity
from longconv.filters import ModalFilter, build_filter
from longconv.layers import Hyena, MultiHyena
from longconv.models import LongConvConfig, LongConvForCausalLM, load_model, save_model

V = 20


def build(mixers="hyena multi_hyena", layers=2, length=96, **more) -> LongConvForCausalLM:
    torch.manual_seed(3)
    rough = {"name": "hyena", "emb_dim": 9, "w": 6.0}
    config = LongConvConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=layers, mixers=mixers, max_position_embeddings=length,
        initializer_range=0.3,
        mixer_options={
            "hyena": {"filter": rough}, "multi_hyena": {"num_heads": 4, "filter": rough},
            "s4d": {"filter": {"name": "s4d", "state_size": 6}},
            "global_conv": {"filter": {"name": "rtf", "order": 4, "init": "montel", "constraint": "l1_montel"}},
            "attention": {"num_heads": 2},
        },
        **more,
    )  # fmt: skip
    return LongConvForCausalLM(config).eval()


def text(rows=4, length=96):
    generator = torch.Generator().manual_seed(5)
    return [{"input_ids": torch.randint(V, (2, length), generator=generator)} for _ in range(rows // 2)]


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def curves(model):
    return [bank.complete() for bank in error_curves(model, method="hankel", max_order=16)]


def totals(cost, loss, choice):
    at = torch.as_tensor(choice)[:, None]
    return int(cost.gather(1, at).sum()), float(loss.gather(1, at).sum())


def problem(seed, items, choices, *, convex):
    """Costs that ascend and losses that descend from 1, by steps that get flatter if `convex`."""
    generator = torch.Generator().manual_seed(seed)
    price = torch.randint(1, 5, (items, choices - 1), generator=generator)
    slope = torch.rand(items, choices - 1, generator=generator, dtype=torch.float64)
    slope = slope.sort(dim=1, descending=True).values if convex else slope
    gain = slope * price
    start = torch.zeros(items, 1)
    return torch.cat([start.long(), price.cumsum(1)], 1), 20 - torch.cat([start.double(), gain.cumsum(1)], 1)


def test_choices_on_convex_hulls_are_optimal_wherever_a_step_ends():
    for seed in range(20):
        cost, loss = problem(seed, 3, 4, convex=True)
        price, gain = cost.diff(dim=1).flatten(), -loss.diff(dim=1).flatten()
        order = (gain / price).argsort(descending=True)
        every = [totals(cost, loss, c) for c in itertools.product(range(4), repeat=3)]
        for budget in [0, *price[order].cumsum(0).tolist()]:
            best = min(value for spent, value in every if spent <= budget)
            spent, value = totals(cost, loss, choose(cost, loss, budget))
            assert spent <= budget
            assert value == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("convex", [True, False])
def test_choices_are_within_one_step_of_the_optimum(convex):
    exact = 0
    for seed in range(60):
        cost, loss = problem(seed, 4, 4, convex=convex)
        every = [totals(cost, loss, c) for c in itertools.product(range(4), repeat=4)]
        # A step on a hull may skip choices.
        step = float((loss[:, :1] - loss[:, 1:]).max())
        if convex:
            step = float(-loss.diff(dim=1).min())
        for budget in (1, 3, 7, 12, 20, 100):
            best = min(value for spent, value in every if spent <= budget)
            spent, value = totals(cost, loss, choose(cost, loss, budget))
            assert spent <= budget
            assert best - 1e-12 <= value < best + step
            exact += value < best + 1e-12
    assert exact > 0.75 * 60 * 6  # and mostly it is the optimum


def test_what_is_left_is_spent_off_the_hull():
    # The hull goes from 0 straight to 10 states. With 5 to spend, 4 help a little.
    cost = torch.tensor([[0, 4, 10]])
    loss = torch.tensor([[10.0, 9.0, 0.0]]).double()
    assert [choose(cost, loss, budget).item() for budget in (3, 5, 9, 10)] == [0, 1, 1, 2]
    assert choose(cost, torch.full_like(loss, 3.0), 100).item() == 0  # nothing is spent on nothing


def test_a_budget_below_the_cheapest_choices():
    with pytest.raises(ValueError, match="budget must be at least 3, the cost of the cheapest choices, got 2"):
        choose(torch.tensor([[1, 5], [2, 6]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(), 2)


def test_the_ladder():
    assert ladder(64) == [0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert ladder(1) == [0, 1]
    assert ladder(30) == [0, 1, 2, 4, 6, 8, 12, 16, 24, 30]
    assert ladder(130) == [0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 130]


def test_curves_of_exact_recurrences():
    # One complex mode, one real pole, both, and nothing: 2, 2, 4 and 0 numbers to store.
    poles = torch.tensor([[0.9 + 0.3j, 0], [0.8, 0], [0.5 + 0.6j, -0.7], [0, 0]]).to(torch.complex128)
    residues = torch.tensor([[1 - 1j, 0], [2, 0], [0.5j, 1], [0, 0]]).to(torch.complex128)
    kernel = ModalFilter.from_modes(poles, residues, torch.ones(4).double())(200).detach()
    curves = ErrorCurves(kernel, max_order=8).complete()
    need = torch.tensor([2, 2, 4, 0])
    reached = (curves.error < 1e-9).long().argmax(1)
    assert curves.states.gather(1, reached[:, None])[:, 0].tolist() == need.tolist()
    modal, fit = curves.modal(need), curves.report(need)
    assert_close(modal(200).detach(), kernel)
    assert fit.fit.order.tolist() == [2, 1, 3, 0]
    assert fit.fit.modes.tolist() == [1, 1, 2, 0]


def test_curves_are_estimates_until_they_are_fits(model):
    (guess, _), (fits, _) = (error_curves(model, method="hankel", max_order=16) for _ in range(2))
    kernel = model.model.layers[0].mixer.long_filters[0](96).detach().double()
    fits.complete()
    for curves in (guess, fits):
        assert (curves.error.diff(dim=1) <= 0).all()
        assert (curves.states.diff(dim=1) >= 0).all()
        assert (curves.states[:, 0] == 0).all()
    # With nothing but the error of no states known, an estimate is right within a factor of two.
    for d in range(8):
        for states, error in zip(fits.states[d], fits.error[d], strict=True):
            guessed = guess.error[d][guess.states[d] <= states].min()
            assert 0.5 * error < guessed < 2 * error
    # What a column says is what the filter does.
    for column in (0, 3, fits.states.shape[1] - 1):
        states = fits.states[:, column]
        missed = torch.linalg.vector_norm(kernel - fits.modal(states)(96).detach().double(), dim=-1)
        assert relative_l2(missed / torch.linalg.vector_norm(kernel, dim=-1), fits.error[:, column]) < 1e-4
        assert torch.equal(2 * fits.report(states).fit.modes, states)
        assert relative_l2(fits.report(states).fit.relative_error, fits.error[:, column]) < 1e-4
    with pytest.raises(ValueError, match="not all of these are fitted yet"):
        guess.modal(guess.states[:, -1])
    with pytest.raises(ValueError, match="must be one of those that the filter can have"):
        fits.modal(torch.full((8,), 7))


def test_curves_fit_only_what_is_asked_for():
    lines = []
    curves = ErrorCurves(torch.randn(3, 64), method="hankel", max_order=16, layer=5)
    states = torch.tensor([0, 16, 4])
    assert curves.fit(states, lines.append)
    assert sorted(lines) == ["layer 5: 1 filters with 16 states", "layer 5: 1 filters with 4 states"]
    assert not curves.fit(torch.zeros(3, dtype=torch.long), lines.append)


@pytest.mark.parametrize(("layer", "copies"), [(Hyena(8, 32), 1), (MultiHyena(8, 32, num_heads=2), 16)])
def test_state_copies_are_those_of_a_stream(layer, copies):
    filters = layer.long_filters
    filters[0] = build_filter({"name": "modal", "order": 3}, filters[0].channels)
    long = layer.init_state(1).long
    state = (long[0] if isinstance(long, tuple) else long).state
    assert 2 * state.numel() == filters[0].channels * filters[0].state_size * copies
    assert layer.state_copies == copies


@pytest.mark.parametrize("weights", ["absolute", "relative", "given"])
def test_allocation(weights):
    torch.manual_seed(0)
    curves = [
        ErrorCurves(scale * torch.randn(2, 40).cumsum(1) * 0.9 ** torch.arange(40), max_order=4, copies=copies)
        for scale, copies in ((1, 1), (0.1, 9))
    ]
    given = [torch.tensor([1.0, 30.0]), torch.tensor([500.0, 0.0])]
    unit = {"absolute": [1.0, 1.0], "relative": [1 / c.norm.square() for c in curves], "given": given}[weights]
    scales = [c.norm.square() * w for c, w in zip(curves, unit, strict=True)]
    for curve in curves:
        curve.complete()
    cost = torch.cat([c.states * c.copies for c in curves])
    loss = torch.cat([w[:, None] * c.error.square() for c, w in zip(curves, scales, strict=True)])
    picks = torch.cartesian_prod(*[torch.arange(cost.shape[1])] * 4)
    every = [table.gather(1, picks.T).sum(0) for table in (cost, loss)]
    step = float((loss[:, :1] - loss).max())
    for budget in (0, 2, 11, 30, 1000):
        states = allocate(curves, budget, given if weights == "given" else weights)
        assert sum(int(n.sum()) * c.copies for n, c in zip(states, curves, strict=True)) <= budget
        column = torch.cat([(c.states == n[:, None]).long().argmax(1) for c, n in zip(curves, states, strict=True)])
        value, best = totals(cost, loss, column)[1], float(every[1][every[0] <= budget].min())
        assert best - 1e-12 <= value < best + step
    assert states[1][1] == 0 or weights != "given"  # what does not count gets nothing


def test_allocation_refuses_what_does_not_fit(curves):
    for options, message in (
        ((-1,), "budget must not be negative"),
        ((5, "best"), "weights must be 'absolute', 'relative' or a tensor for each bank, got 'best'"),
        ((5, [torch.ones(8)]), r"shapes \[\(8,\), \(4,\)\] of the banks, got \[\(8,\)\]"),
        ((5, [torch.ones(8), -torch.ones(4)]), "finite and not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            allocate(curves, *options)


def test_fitting_on_demand_is_worth_as_much_as_fitting_everything(model, curves):
    def loss(states, banks):
        columns = [
            (bank.states == n[:, None]).long().argmax(1, keepdim=True) for bank, n in zip(banks, states, strict=True)
        ]
        missed = [bank.norm * bank.error.gather(1, c)[:, 0] for bank, c in zip(banks, columns, strict=True)]
        return float(torch.cat(missed).square().sum())

    for budget in (40, 150, 300):
        _, report, search = distill_to_budget(model, state_size=budget, method="hankel", max_order=16)
        assert search.chosen.state_size <= budget
        missed = [torch.linalg.vector_norm(fit.fitted - fit.kernel) for fit in report.layers]
        reached = float(torch.stack(missed).square().sum())
        assert reached <= loss(allocate(curves, int(0.85 * budget)), curves)


def test_sensitivity_is_what_random_errors_do():
    """KL of errors of random signs, tap by tap, on one bank at a time: w ||e||^2 on average."""
    model, batches = build(length=24).double(), text(rows=40, length=24)
    weights = sensitivity(model, batches)
    assert [tuple(w.shape) for w in weights] == [(8,), (4,)]
    generator, recorded = torch.Generator().manual_seed(7), Recorded(model, batches)
    for layer, weight in enumerate(weights):
        (filter,) = model.model.layers[layer].mixer.long_filters
        kl, predicted = 0.0, 0.0
        for _ in range(8):
            error = 0.01 * torch.randn(len(weight), 24, generator=generator, dtype=torch.float64)
            exact = compare(recorded, Erring(model, filter, error), batches)
            kl, predicted = kl + exact.kl, predicted + float((weight * error.square().sum(-1)).sum())
        assert kl == pytest.approx(predicted, rel=0.2)


class Erring:
    """A model with an error added to the taps of one filter."""

    def __init__(self, model, filter, error):
        self.model, self.filter, self.error = model, filter, error

    def __call__(self, input_ids):
        handle = self.filter.register_forward_hook(lambda _m, _i, taps: taps + self.error[:, : taps.shape[1]])
        try:
            return self.model(input_ids=input_ids)
        finally:
            handle.remove()


def test_sensitivity_sees_only_what_reaches_predictions():
    model, batches = build("hyena"), text()
    batches[0]["labels"] = batches[0]["input_ids"].masked_fill(torch.arange(96) > 0, -100)  # nothing predicted
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.model.layers[1].mixer.out_proj.weight[:] = 0
    model.train()
    first, second = sensitivity(model, batches)
    assert model.training
    assert (first > 0).all()
    assert not second.any()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(before) == set(model.state_dict())
    assert not any(filter._forward_hooks for filter in model.model.layers[0].mixer.long_filters)
    _, _, search = distill_to_budget(model, state_size=60, calibration=batches, method="hankel", max_order=8)
    assert search.orders[0].sum() > 0
    assert not search.orders[1].any()
    with pytest.raises(ValueError, match="no token is predicted"):
        sensitivity(model, [{"input_ids": torch.zeros(2, 1, dtype=torch.long)}])


def test_a_budget_end_to_end(model, tmp_path):
    batches = text()
    student, report, search = distill_to_budget(
        model, state_size=160, calibration=batches, method="hankel", max_order=16
    )
    assert [(fit.layer, fit.stage) for fit in report.layers] == [(0, 0), (1, 0)]
    assert search.copies == [1, 4]
    stored = [f.stored_state_size() for block in student.model.layers for f in block.mixer.long_filters]
    counted = [2 * int(fit.fit.modes.sum()) for fit in report.layers]
    assert search.chosen.state_size == counted[0] + 4 * counted[1] <= 160
    # A stream may keep a tenth more, where leaving it out does not pay.
    assert all(n <= kept <= 1.12 * n for n, kept in zip(counted, stored, strict=True))
    assert len({tuple(order.tolist()) for order in search.orders}) == 2
    assert len(set(search.orders[0].tolist())) > 1  # orders differ within a layer
    assert search.chosen.agreement == compare(model, student, batches)
    # All filters with as many states as they all can pay is worse.
    uniform, _ = distill(model, order=160 // (8 + 4 * 4) // 2 * 2, method="hankel")
    assert search.chosen.agreement.kl < compare(model, uniform, batches).kl
    save_model(student, tmp_path / "student")
    ids = batches[0]["input_ids"]
    assert torch.equal(load_model(tmp_path / "student")(ids).logits, student(ids).logits)
    out = student(ids[:, :50], use_cache=True)
    steps = [out.logits]
    for t in range(50, 60):
        out = student(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(out.logits)
    assert_close(torch.cat(steps, 1), student(ids[:, :60]).logits)
    assert json.loads(json.dumps(search.to_dict()))["orders"] == [order.tolist() for order in search.orders]


def test_no_states_and_no_text(model):
    student, report, search = distill_to_budget(model, state_size=0)
    assert search.chosen.state_size == 0
    assert search.chosen.agreement is None
    assert "within the budget  <- chosen" in str(search)
    for fit in report.layers:
        assert_close(fit.fitted[:, 0], fit.kernel[:, 0])
        assert not fit.fitted[:, 1:].any()
    assert student(text()[0]["input_ids"]).logits.isfinite().all()


def test_recurrences_stay_where_the_budget_has_room_for_them():
    model = build("s4d global_conv hyena attention", layers=4, length=64)
    ids = text(length=64)[0]["input_ids"]
    student, report, search = distill_to_budget(model, state_size=10_000, method="hankel", max_order=8)
    assert [fit.exact for fit in report.layers] == [True, True, False]
    # Three modes of S4D-Lin, the first of them real, and RTF's four real states.
    assert set(student.config.layer_options) == {"2"}
    modes, states = report.layers[0].fit.modes, report.layers[1].fit.order
    assert modes.tolist() == [3] * 8
    assert states.tolist() == [4] * 8
    hyena = 2 * int(report.layers[2].fit.modes.sum())
    assert search.chosen.state_size == 8 * 2 * 3 + 8 * 4 + hyena
    smaller, report, search = distill_to_budget(model, state_size=60, method="hankel", max_order=8)
    assert search.chosen.state_size <= 60
    assert not any(fit.exact for fit in report.layers)
    assert smaller(ids).logits.isfinite().all()


def test_a_tolerance_is_met_with_few_states(model):
    batches, lines = text(), []
    options = {"method": "hankel", "max_order": 16}
    student, report, search = distill_to_tolerance(model, batches, kl=1e-2, progress=lines.append, **options)
    assert search.reached
    assert search.chosen.agreement.kl <= 1e-2
    assert search.chosen.agreement == compare(model, student, batches)
    assert (search.metric, search.limit) == ("kl", 1e-2)
    assert search.chosen.state_size == sum(
        2 * int(fit.fit.modes.sum()) * copies for fit, copies in zip(report.layers, search.copies, strict=True)
    )
    # Nothing tried with fewer states is good enough, and there were such trials.
    fewer = [trial for trial in search.trials if trial.state_size < 0.97 * search.chosen.state_size]
    assert fewer
    assert all(trial.agreement.kl > 1e-2 for trial in fewer)
    # Each order of each filter is fitted once at most: trials share the curves.
    fits = [line for line in lines if "filters with" in line]
    assert sum(int(line.split()[2]) for line in fits) <= (8 + 4) * len(ladder(16))
    assert len(search.trials) == len(lines) - len(fits)
    assert str(search).count("\n") == len(search.trials)
    loose = distill_to_tolerance(model, batches, logit_error=0.4, **options)[2]
    tight = distill_to_tolerance(model, batches, logit_error=0.2, **options)[2]
    assert loose.chosen.agreement.logit_error <= 0.4
    assert tight.chosen.agreement.logit_error <= 0.2
    assert loose.chosen.state_size < tight.chosen.state_size


def test_a_tolerance_out_of_reach(model):
    options = {"kl": 1e-9, "method": "hankel", "max_order": 2}
    _, _, search = distill_to_tolerance(model, text(), **options)
    assert not search.reached
    assert search.chosen.agreement.kl == min(trial.agreement.kl for trial in search.trials)
    assert "kl <= 1e-09 is not reached with as many states as max_order allows" in str(search)
    with pytest.raises(ValueError, match="kl: 1e-09 is out of reach with max_order = 2, which comes to"):
        distill_to_tolerance(model, text(), strict=True, **options)


def test_bad_options_are_named(model):
    batches = text()
    for call, message in (
        (lambda: distill_to_budget(model, state_size=-1), "state_size must not be negative, got -1"),
        (lambda: distill_to_tolerance(model, batches), "exactly one of kl and logit_error"),
        (lambda: distill_to_tolerance(model, batches, kl=1, logit_error=1), "exactly one of kl and logit_error"),
        (lambda: distill_to_tolerance(model, batches, kl=0.0), "kl must be positive, got 0.0"),
        (lambda: distill_to_tolerance(model, batches, kl=float("nan")), "kl must be positive"),
        (lambda: distill_to_tolerance(model, [], kl=1.0), "no token is predicted"),
        (lambda: distill_to_budget(model, state_size=0, method="magic"), "unknown distillation method 'magic'"),
        (lambda: distill_to_budget(model, state_size=9, length=97), "length must be in 1..max_length = 96"),
        (lambda: distill_to_budget(model, state_size=9, max_order=0), "max_order and copies must be at least 1"),
        (lambda: distill_to_budget(build("attention"), state_size=9), "no long filter to distil"),
        (lambda: ErrorCurves(torch.full((2, 8), torch.nan)), "k must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
