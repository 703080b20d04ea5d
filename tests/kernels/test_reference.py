import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from page_builder import Pages, Recipe, operands_of, scalars

from pagedopt.codecs.base import StateFormat
from pagedopt.codecs.codebook import sorted_values
from pagedopt.kernels.reference import ReferenceKernel

F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat
EIGHT_BIT = pytest.mark.parametrize("state_format", [BLOCKWISE, TENSORWISE])
KERNEL = ReferenceKernel()
DEFAULTS = Recipe()


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(pages, params, grads_of_step, steps, recipe=DEFAULTS):
    for step in range(1, steps + 1):
        grads = grads_of_step(step)
        pages.update(KERNEL, operands_of(params, grads, [scalars(step, recipe)]))


# --- 32-bit state -----------------------------------------------------------------------------------------------------

# Each of 100 steps rounds p and DECAY by up to 2^-24 of p, and u by a few 2^-24 of lr; torch in float32 does, too.
AFTER_100_STEPS = {"rtol": 100 * 2 * 2.0**-24, "atol": 1e-6}


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_32_bit_state_equals_torch_adamw_in_float64_after_100_steps(amsgrad, maximize):
    start = normal(37, 41)
    oracle, peer = start.double().requires_grad_(), start.clone().requires_grad_()
    adamw = torch.optim.AdamW([oracle, peer], lr=1e-3, weight_decay=1e-2, amsgrad=amsgrad, maximize=maximize)
    param = start.clone().view(-1)
    pages = Pages([(37, 41)], [AMSGRAD if amsgrad else F32], capacity=4096)

    def grads(step):
        grad = normal(37, 41, seed=step) * (1 if step < 50 else 0.01)
        oracle.grad, peer.grad = grad.double(), grad
        adamw.step()
        return [grad.view(-1)]

    run(pages, [param], grads, 100, Recipe(grad_scale=-1.0 if maximize else 1.0))

    exact = oracle.detach().view(-1)
    torch.testing.assert_close(param.double(), exact, **AFTER_100_STEPS)
    assert (param - exact).abs().max() <= 1.1 * (peer.detach().view(-1) - exact).abs().max()
    for name, moment in pages.state(0).items():
        torch.testing.assert_close(moment.double(), adamw.state[oracle][name].view(-1), rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("state_format", list(StateFormat))
@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_computes_in_float32_and_rounds_once(state_format, param_dtype, grad_dtype):
    start, grad = normal(300, dtype=param_dtype), normal(300, seed=1, dtype=grad_dtype)
    param, wide = start.clone(), start.float()

    run(Pages([(300,)], [state_format]), [param], lambda _: [grad], 1)
    run(Pages([(300,)], [state_format]), [wide], lambda _: [grad.float()], 1)

    assert torch.equal(param, wide.to(param_dtype))


def test_amsgrad_keeps_the_largest_v_and_lets_nan_through():
    pages = Pages([(4,)], [AMSGRAD])
    pages.fill(0, "max_exp_avg_sq", lambda v: v.copy_(torch.tensor([9.0, 0.0, 9.0, math.nan])))
    param = torch.zeros(4)
    run(pages, [param], lambda _: [torch.tensor([1.0, 1.0, math.nan, 1.0])], 1)
    largest = pages.state(0)["max_exp_avg_sq"]
    assert largest[0] == 9
    assert largest[1] == pages.state(0)["exp_avg_sq"][1]
    assert largest.isnan().tolist() == param.isnan().tolist() == [False, False, True, True]


# --- 8-bit state ------------------------------------------------------------------------------------------------------


def simulated_codes(values, signed):
    """Nearest codes of a block by a search of the whole table, in float64; and how near the choice was to a tie."""
    table = sorted_values(signed=signed).double()
    zero = int((table == 0).nonzero())
    scale = values.abs().max()
    distance = (table - (values / scale)[:, None]).abs()
    distance[values != 0, zero] = math.inf
    nearest, position = distance.topk(2, dim=1, largest=False)
    code = torch.where(values == 0, zero, position[:, 0]) - (127 if signed else 0)
    is_tie = (values != 0) & (nearest[:, 1] - nearest[:, 0] < 1e-4 * nearest[:, 0])
    return code.remainder(256).to(torch.uint8), scale, is_tie


def simulated_step(param, grad, m, root, step, recipe):
    beta1, beta2 = recipe.betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * root**2 + (1 - beta2) * grad**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    update = (m_hat / (v_hat.sqrt() + recipe.eps)).clamp(-4, 4)
    return param * (1 - recipe.lr * recipe.weight_decay) - recipe.lr * update, m, v.sqrt()


@EIGHT_BIT
def test_8_bit_state_equals_a_plain_simulation_of_quantize_and_dequantize(state_format):
    recipe, width = Recipe(lr=0.1), 700
    pages = Pages([(700,)], [state_format])
    param = normal(width)
    size = 256 if state_format is BLOCKWISE else width
    m = root = torch.zeros(width, dtype=torch.float64)
    for step in range(1, 21):
        grad = normal(width, seed=step) * 10 ** (2 * normal(width, seed=99).sign())
        before = param.double()
        pages.update(KERNEL, operands_of([param], [grad], [scalars(step, recipe)]))
        expected, m, root = simulated_step(before, grad.double(), m, root, step, recipe)
        torch.testing.assert_close(param.double(), expected, rtol=1e-6, atol=1e-6)

        state = pages.state(0)
        for name, moment, signed in (("exp_avg", m, True), ("exp_avg_sq", root, False)):
            codes = state[name].view(torch.uint8)
            for block, start in enumerate(range(0, width, size)):
                simulated, absmax, is_tie = simulated_codes(moment[start : start + size], signed)
                assert state[f"{name}_absmax"][block].item() == pytest.approx(absmax.item(), rel=1e-6)
                assert ((codes[start : start + size] == simulated) | is_tie).all()

        m, root = decoded(state, size)


def decoded(state, size):
    """Decode by the sorted table, for each block of `size` values."""
    moments = []
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        position = state[name].view(torch.uint8).long()
        position = (position + 127).remainder(256) if signed else position
        scale = state[f"{name}_absmax"].double().repeat_interleave(size)[: len(position)]
        moments.append(sorted_values(signed=signed).double()[position] * scale)
    return moments


@EIGHT_BIT
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_spoilt_gradient_value_spoils_its_parameter_and_nothing_else(state_format, bad):
    def history(value):
        pages, param = Pages([(600,)], [state_format]), normal(600)
        grads = [normal(600, seed=step) for step in range(4)]
        for grad in grads:
            grad[5] = 0.0
        grads[1][5] = value
        run(pages, [param], lambda step: [grads[step - 1]], 4)
        return param, pages.state(0)

    param, state = history(bad)
    clean_param, clean_state = history(0.0)

    # Its neighbours' parameters and state have the bits they get if the spoilt value never had a gradient at all.
    assert param.isnan().nonzero().view(-1).tolist() == [5]
    param[5] = clean_param[5]
    assert torch.equal(param, clean_param)
    for name, array in state.items():
        assert torch.equal(array, clean_state[name])


@EIGHT_BIT
def test_an_overflow_of_v_stops_the_value_for_good_as_with_32_bit_state(state_format):
    params = [normal(300), normal(300)]
    before = params[0][7].item()
    pages = Pages([(300,), (300,)], [state_format, F32])

    def grads(step):
        grad = normal(300, seed=step)
        grad[7] = 1e25 if step == 1 else 1.0
        return [grad, grad]

    run(pages, params, grads, 20, Recipe(weight_decay=0.0))

    assert params[0][7] == before == params[1][7]
    assert params[0].isfinite().all()
    assert pages.state(0)["exp_avg_sq"][7].item() == 255


@EIGHT_BIT
def test_no_m_is_kept_without_a_root(state_format):
    pages, param = Pages([(300,)], [state_format]), torch.zeros(300)
    grad = 10.0 ** torch.linspace(-44, 3, 300)
    run(pages, [param], lambda _: [grad], 1)
    state = pages.state(0)
    assert (state["exp_avg"] != 0).all()
    assert (state["exp_avg_sq"] != 0).all()


@EIGHT_BIT
def test_a_value_that_never_had_a_gradient_stays_exactly_where_it_was(state_format):
    pages, param = Pages([(1000,)], [state_format], capacity=2048), normal(1000)
    param[::4], param[2::4] = -0.0, 0.0
    start = param.clone()

    def grads(step):
        grad = normal(1000, seed=step) * 10**step
        grad[::2] = -0.0 if step % 2 else 0.0
        return [grad]

    run(pages, [param], grads, 12, Recipe(weight_decay=0.0, grad_scale=-1.0))

    assert torch.equal(param[::2].view(torch.int32), start[::2].view(torch.int32))
    assert (param[1::2] != start[1::2]).all()
    assert all((pages.state(0)[name][::2] == 0).all() for name in ("exp_avg", "exp_avg_sq"))


# What is left of the bound where gradients are below FLOOR: an m lifted to FLOOR's smallest code, over eps.
LIFTED = 2.0**-100 / 1e-8

gradients = st.one_of(
    st.just(0.0),
    st.tuples(st.sampled_from([-1.0, 1.0]), st.floats(1, 10), st.integers(-30, 30)).map(
        lambda sme: sme[0] * sme[1] * 10.0 ** sme[2]
    ),
    st.sampled_from([1.0, -1.0, 1e-3, 1e3, 1e30, -1e-30, 1.9e19]),
)


@EIGHT_BIT
@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(gradients, min_size=n, max_size=n), min_size=1, max_size=30))
)
@settings(max_examples=300, deadline=None)
def test_no_update_of_any_finite_history_is_over_four_times_the_largest_of_32_bit_state(state_format, history):
    numel = len(history[0])
    pages = Pages([(numel,), (numel,)], [state_format, F32])
    recipe = Recipe(lr=1.0, weight_decay=0.0)
    largest = 0.0
    for step, numbers in enumerate(history, start=1):
        grad = torch.tensor(numbers, dtype=torch.float32)
        params = [torch.zeros(numel), torch.zeros(numel)]  # from zero, so that they show the update unrounded
        pages.update(KERNEL, operands_of(params, [grad, grad], [scalars(step, recipe)]))
        ours, theirs = (param.abs().max().item() for param in params)
        largest = max(largest, theirs)
        assert math.isfinite(ours)
        assert ours <= 4 * 1.000001 * largest + LIFTED


@EIGHT_BIT
def test_a_root_that_is_stuck_too_low_does_not_let_updates_grow(state_format):
    """The smallest root of a block, 3.25e-7 of its largest, has no code nearby: gradients 40 times larger add 0.1% of
    their square to v in each step, too little to reach the next code, and m catches up with them.
    """
    pages, recipe = Pages([(2,)], [state_format]), Recipe(lr=1.0, weight_decay=0.0)
    pages.fill(0, "exp_avg_sq", lambda codes: codes.copy_(torch.tensor([255, 1])))
    pages.fill(0, "exp_avg_sq_absmax", lambda absmax: absmax.fill_(1.0))
    for step in range(10_000, 10_060):
        param = torch.zeros(2)
        pages.update(KERNEL, operands_of([param], [torch.tensor([1.0, 1.3e-5])], [scalars(step, recipe)]))
        assert param.abs().max() <= 4
    assert pages.state(0)["exp_avg_sq"].tolist() == [255, 1]
