"""Plans: what is read off compiled programs, the FLOPs of traced ones, the search for a batch, the program."""

import dataclasses
import importlib.util
import json
import math
import platform
import sys
import types
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import TINY, assert_one_line_error, run_program
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import qwen3llada_jax as q
from qwen3llada_jax import fsdp, sharding
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import PRESETS
from qwen3llada_jax.process import libtpu
from train import plan, step
from train.config.schema import Config, DatasetConfig, MeshConfig, TrainingConfig
from train.monitor.model_flops import training_flops_per_token
from train.optim import bad_updates
from train.planning import hardware, hlo_analysis, saved_activations
from train.planning.jaxpr_analysis import traced

# A loop as the TPU compiler prints it: no known_trip_count, a counter that starts at 2 and climbs by 2 to 10, a
# permute and a collective in pieces inside, a reduce-scatter spelled as an all-reduce in a fusion.
TPU_TEXT = """HloModule step, entry_computation_layout={()->f32[]}

%all-reduce-scatter.1 (p0: f32[64,8]) -> f32[16,8] {
  %p0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,8]{1,0:T(8,128)} all-reduce(%p0), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.1 = f32[16,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %p0), dynamic_slice_sizes={16,8}
}

%async_collective_fusion.7 (p1: bf16[2,8]) -> bf16[8,8] {
  %p1 = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,8]{1,0} all-gather(%p1), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}

%start (p2: bf16[2,8]) -> bf16[8,8] {
  %p2 = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,8]{1,0} all-gather(%p2), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}

%done (p3: bf16[8,8]) -> bf16[8,8] {
  %p3 = bf16[8,8]{1,0} parameter(0)
  %all-gather.3 = bf16[8,8]{1,0} all-gather(%p3), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %ended = bf16[8,8]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%condition.1 (state: (u32[], bf16[2,8], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(10)
  %state = (u32[]{:T(128)}, bf16[2,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%windowed_dot_general_body_ag.1 (state.1: (u32[], bf16[2,8], u32[])) -> (u32[], bf16[2,8], u32[]) {
  %state.1 = (u32[]{:T(128)}, bf16[2,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%state.1), index=0
  %share = bf16[2,8]{1,0:S(1)} get-tuple-element(%state.1), index=1
  %by = u32[]{:T(128)} get-tuple-element(%state.1), index=2
  %next = u32[]{:T(128)} add(%counter.1, %by)
  %send = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%share), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %sent = bf16[2,8]{1,0} collective-permute-done(%send)
  %step = bf16[8,8]{1,0} fusion(%sent), kind=kOutput, calls=%async_collective_fusion.7
  ROOT %tuple.1 = (u32[]{:T(128)}, bf16[2,8]{1,0}, u32[]{:T(128)}) tuple(%next, %sent, %by)
}

%condition.2 (state.2: (pred[], f32[4])) -> pred[] {
  %state.2 = (pred[], f32[4]{0}) parameter(0)
  ROOT %go = pred[] get-tuple-element(%state.2), index=0
}

%body.2 (state.3: (pred[], f32[4])) -> (pred[], f32[4]) {
  %state.3 = (pred[], f32[4]{0}) parameter(0)
  %vector = f32[4]{0} get-tuple-element(%state.3), index=1
  %all-reduce.3 = f32[4]{0} all-reduce(%vector), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %first = pred[] compare(%vector, %vector), direction=LT
  ROOT %tuple.2 = (pred[], f32[4]{0}) tuple(%first, %all-reduce.3)
}

ENTRY %main (a: bf16[2,8], b: f32[64,8], c: (pred[], f32[4])) -> f32[16,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = f32[64,8]{1,0} parameter(1)
  %c = (pred[], f32[4]{0}) parameter(2)
  %two = u32[]{:T(128)} constant(2)
  %start.1 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%start
  %tuple.3 = (u32[]{:T(128)}, bf16[2,8]{1,0}, u32[]{:T(128)}) tuple(%two, %a, %two)
  %while.1 = (u32[]{:T(128)}, bf16[2,8]{1,0}, u32[]{:T(128)}) while(%tuple.3), condition=%condition.1, body=%windowed_dot_general_body_ag.1
  %done.1 = bf16[8,8]{1,0} fusion(%start.1), kind=kCustom, calls=%done
  %while.2 = (pred[], f32[4]{0}) while(%c), condition=%condition.2, body=%body.2, metadata={op_name="jit(f)/search/while"}
  ROOT %out = f32[16,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program():
    found = hlo_analysis.collectives(TPU_TEXT, {"search": 3})
    assert found == {
        "all-gather": (1, 8 * 8 * 2),  # its pieces in the loop are the same one
        "collective-permute": (4, 4 * 2 * 8 * 2),  # counter 2, 4, 6, 8
        "all-reduce": (3, 3 * 4 * 4),
        "reduce-scatter": (1, 64 * 8 * 4),
    }
    groups = {one.kind: one.group for one in hlo_analysis.find_collectives(TPU_TEXT, {"search": 3})}
    assert groups == dict.fromkeys(found, 4)
    reordered = TPU_TEXT.replace("'b'=4] {'b'}", "'b'=4], device_ids=([4,2]T(1,0)) {'b'}")
    assert reordered != TPU_TEXT
    assert {one.group for one in hlo_analysis.find_collectives(reordered, {"search": 3})} == {4}
    names = {one.name for one in hlo_analysis.by_purpose(TPU_TEXT, {"search": 3})}
    assert "collective-permute (piecewise all-gather)" in names
    with pytest.raises(ValueError, match=r"all-reduce\.3 in body\.2"):
        hlo_analysis.collectives(TPU_TEXT)
    with pytest.raises(ValueError, match="who takes part"):
        hlo_analysis.collectives(
            TPU_TEXT.replace("replica_groups={{0,1,2,3}}", "replica_groups=unknown"), {"search": 3}
        )


# A collective that SparseCores run beside the rest of the program.
SPARSE_CORE_TEXT = """HloModule step

%called_computation (param_0: f32[64,8], param_1: token[]) -> f32[16,8] {
  %param_1 = token[] parameter(1)
  %param_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  ROOT %reduce-scatter.1 = f32[16,8]{1,0:T(8,128)} reduce-scatter(%param_0), channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[64,8]) -> f32[16,8] {
  %a = f32[64,8]{1,0:T(8,128)} parameter(0)
  %ready = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %call-start = ((f32[64,8]{1,0:T(8,128)}, token[]), f32[16,8]{1,0:T(8,128)}) call-start(%a, %ready), async_execution_thread="sparsecore", to_apply=%called_computation
  ROOT %call-done = f32[16,8]{1,0:T(8,128)} call-done(%call-start)
}
"""  # noqa: E501


def test_collectives_that_sparse_cores_run():
    assert hlo_analysis.collectives(SPARSE_CORE_TEXT) == {"reduce-scatter": (1, 64 * 8 * 4)}
    assert hlo_analysis.hbm_bytes(SPARSE_CORE_TEXT) == (64 + 16) * 8 * 4


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_activations_that_the_layers_keep(pieces):
    """Under remat `full` each layer's input alone; more under `dots`, and all under `none`."""
    layers, B, L, D = 3, 8, 32, 32
    architecture = q.ModelConfig(64, D, 64, layers, 2, 2, 16, mask_token_id=63, live_vocab_size=63)
    found = {}
    for remat in ("full", "dots", "none"):
        config = Config(
            training=TrainingConfig(
                batch_size=B, max_length=L, bf16=True, remat=remat, gradient_accumulation_steps=pieces
            ),
            dataset=DatasetConfig("x"),
        )
        program, _ = plan.traced_step(config, architecture, sharding.make_mesh(1, 4, 1, jax.devices()[:4]))
        found[remat] = saved_activations.saved_bytes(program.jaxpr, layers)
    assert found["full"] == layers * B // pieces * L * D * 2
    assert found["full"] < found["dots"] < found["none"]


@pytest.mark.slow
def test_the_step_that_is_planned_is_the_runs():
    """What on_nan and on_spike hold is counted: with skip, the old moments beside the new."""
    architecture = q.ModelConfig(64, 32, 64, 1, 2, 2, 16, mask_token_id=63, live_vocab_size=63)
    size = {}
    for rule in ("stop", "skip"):
        config = Config(training=TrainingConfig(batch_size=4, max_length=16, on_nan=rule), dataset=DatasetConfig("x"))
        mesh = sharding.make_mesh(1, 4, 1, jax.devices()[:4])
        program, state = plan.traced_step(config, architecture, mesh)
        assert isinstance(state["opt"], bad_updates.SkipState)
        with jax.set_mesh(mesh):
            size[rule] = program.lower().compile().memory_analysis().temp_size_in_bytes
    assert size["skip"] > size["stop"]


@pytest.mark.slow
@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="libtpu is for Linux on x86-64")
@pytest.mark.parametrize("D", [1024, 320])
@pytest.mark.parametrize("topology", [pytest.param(t, marks=pytest.mark.soak) for t in ("v5e:4x4", "v6e:4x4")])
def test_tpus_gather_weights_and_scatter_gradients(monkeypatch, topology, D):
    """fsdp over both axes of a torus: in each layer seven weights gathered twice, seven gradients reduce-scattered.

    Shares of 20 columns (320 over 16, as of Qwen3-32B over 256) are no whole tiles of a TPU.
    """
    for name, value in libtpu.ANSWERS.items():  # so that what is set stays within this test
        monkeypatch.setenv(name, value)
    layers = 2
    V = 128 * 63  # Qwen3's 151,936 rows are 128 times an odd number too
    architecture = q.ModelConfig(V, D, 1024, layers, 2, 2, 128, mask_token_id=V - 1, live_vocab_size=V - 1)
    config = Config(
        training=TrainingConfig(batch_size=16, max_length=256, bf16=True, remat="full"),
        dataset=DatasetConfig(name="none"),
    )
    mesh = sharding.make_mesh(1, 16, 1, hardware.hardware_of(topology).devices)
    program, _ = plan.traced_step(config, architecture, mesh)
    with jax.set_mesh(mesh):
        text = program.lower().compile().as_text()
    found = hlo_analysis.find_collectives(text, {"cross_entropy": 1})
    assert not any(one.kind == "all-to-all" for one in found)
    in_layers = Counter(one.kind for one in found if one.times == layers)
    assert in_layers["all-gather"] == 14
    assert in_layers["reduce-scatter"] == 7
    # what is all-reduced are norms' gradients and metrics: vectors
    assert max(one.bytes for one in found if one.kind == "all-reduce") < 16_384
    once = Counter()  # embedding and head
    for one in found:
        if one.times == 1 and one.kind != "all-reduce":
            once[one.kind] += one.bytes
    rows = sum(fsdp._powers_of_two(V))
    assert once == {"all-gather": 2 * V * D * 2, "reduce-scatter": 2 * rows * D * 4}
    # splash attention, once forward, once again and once backward in each layer; nothing is computed by two devices
    kernels = hlo_analysis.kernels(text, {"cross_entropy": 1})
    assert {name[:14] for name in kernels} == {"splash_mqa_fwd", "splash_mqa_dkv"}
    assert sum(kernels.values()) == 3 * layers
    counted = traced(program.jaxpr, {"cross_entropy": 1})
    compiled = hlo_analysis.matmul_flops(text, {"cross_entropy": 1}) * 16 + counted.kernels
    again = 2 * 16 * 256 * V * D  # logits, which the compiler may rather compute twice than keep where D is small
    assert any(compiled == pytest.approx(counted.total + more, rel=0.01) for more in (0, again))


# Kernels as the texts of TPUs and GPUs call them: Pallas' go by their own names, libraries' by their targets.
KERNELS_TEXT = """
ENTRY %main (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[32,16]{1,0} parameter(1)
  %splash_mqa_fwd_residuals.1 = f32[64,32]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  %splash_mqa_fwd_residuals.2 = f32[64,32]{1,0} custom-call(%splash_mqa_fwd_residuals.1), custom_call_target="tpu_custom_call"
  %attention.1 = f32[64,32]{1,0} custom-call(%splash_mqa_fwd_residuals.2), custom_call_target="__cudnn$fmhaSoftmax"
  %sharded = f32[64,32]{1,0} custom-call(%attention.1), custom_call_target="Sharding"
  %product = (f32[64,16]{1,0}, s8[4194304]{0}) custom-call(%sharded, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT %out = f32[64,16]{1,0} get-tuple-element(%product), index=0
}
"""  # noqa: E501


def test_kernels_are_found_by_name_and_products_of_cublas_counted():
    assert hlo_analysis.kernels(KERNELS_TEXT) == {
        "splash_mqa_fwd_residuals": 2, "__cudnn$fmhaSoftmax": 1, "__cublas$lt$matmul": 1
    }  # fmt: skip
    assert hlo_analysis.matmul_flops(KERNELS_TEXT) == 2 * 64 * 32 * 16
    looped = TPU_TEXT.replace("fusion(%sent), kind=kOutput, calls=%async_collective_fusion.7",
                              'custom-call(%sent), custom_call_target="tpu_custom_call"')  # fmt: skip
    assert hlo_analysis.kernels(looped, {"search": 3}) == {"step": 4}


@pytest.mark.parametrize("pieces", [1, 4])
def test_what_fsdp_sends_at_least(pieces):
    """Two gathers and a scatter of what lies in shares, by rings; and the shares' gradients over data."""
    shape = q.ModelConfig(64, 32, 48, 2, 4, 2, 8, mask_token_id=63)
    _, shapes, roles = model.abstract(shape)
    spread = sum(x.size for x in jax.tree.leaves(shapes)) - sum(
        x.size for x, role in zip(jax.tree.leaves(shapes), jax.tree.leaves(roles), strict=True) if role.kind == "norm"
    )

    def least(*sizes, **more):
        mesh = sharding.make_mesh(*sizes)
        placed = sharding.shardings(roles, shapes, mesh)
        params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
        training = TrainingConfig(batch_size=32, max_length=16, gradient_accumulation_steps=pieces, bf16=True, **more)
        return plan.least_sent(Config(training=training, dataset=DatasetConfig("x")), params, mesh)

    assert least(1, 8, 1) == pieces * 2 * spread * 3 * 7 / 8
    assert least(8, 1, 1) == pieces * 2 * spread * 2 * 7 / 8
    assert least(2, 4, 1) == pieces * 2 * spread * (3 * 3 / 4 + 2 / 4 / 2)
    assert least(1, 4, 2) is None
    assert least(1, 8, 1, freeze=("embed_tokens",)) is None


def test_bytes_on_the_wire():
    one = hlo_analysis.Collective("all-reduce", 1, 800, 4, "", "", "")
    assert one.wire_bytes == 1200  # a ring reduces and then gathers three quarters
    assert one._replace(kind="all-gather").wire_bytes == 600
    assert one._replace(kind="collective-permute").wire_bytes == 800


def test_loops_multiply_collectives_and_flops():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    on = lambda *axes: NamedSharding(mesh, P(*axes))  # noqa: E731

    def step(ws, x):
        def one(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, on())), None

        return jax.lax.scan(one, x, ws)[0]

    program = jax.jit(step, out_shardings=on("d")).trace(
        jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=on(None, "d")),
        jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=on("d")),
    )
    text = program.lower().compile().as_text()
    assert hlo_analysis.collectives(text)["all-gather"] == (5, 5 * 64 * 64 * 4)
    assert traced(program.jaxpr, {}).total == 5 * 2 * 16 * 64 * 64
    assert hlo_analysis.matmul_flops(text) == 5 * 2 * 2 * 64 * 64  # two rows a device
    assert ("f32", (64, 64)) in hlo_analysis.arrays(text)
    # at least: each round writes and reads the gathered weight
    assert 5 * 2 * 64 * 64 * 4 < hlo_analysis.hbm_bytes(text) < 5 * 10 * 64 * 64 * 4


def test_flops_of_a_training_step_are_the_models():
    """No recomputation, every token through the head: exactly 6·N + attention; and remat adds a forward pass."""
    config = q.ModelConfig(128, 32, 48, 2, 4, 2, 8, mask_token_id=127)
    B, L = 2, 16
    _, shapes, _ = model.abstract(config)

    def total(remat):
        graphdef, _, _ = model.abstract(config, runtime=model.Runtime("float32", "xla", remat))

        def loss(params, tokens):
            network = nnx.merge(graphdef, params)
            return network.logits(network.hidden(tokens)).sum()

        tokens = jax.ShapeDtypeStruct((B, L), jnp.int32)
        return traced(jax.jit(jax.grad(loss)).trace(shapes, tokens).jaxpr, {})

    needed = training_flops_per_token(config, L) * B * L
    assert total("none") == (needed, 0, 0)
    head = 6 * 128 * 32 * B * L
    again = total("full")
    assert again.total == needed + again.recomputed
    # one more forward pass of the layers, but for the last product, whose result nobody needs
    assert again.recomputed == (needed - head) / 3 - 2 * (2 * 32 * 48 * B * L)


def test_loops_that_data_decide():
    """A while loop says nothing of its trips: they are given, or it is an error."""

    def f(x, n):
        with jax.named_scope("search"):
            return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    program = jax.jit(f).trace(jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    assert traced(program.jaxpr, {"search": 3}).total == 3 * 2 * 8**3
    with pytest.raises(ValueError, match="search"):
        traced(program.jaxpr, {})
    text = program.lower().compile().as_text()
    assert hlo_analysis.matmul_flops(text, {"search": 3}) == 3 * 2 * 8**3
    with pytest.raises(ValueError, match="cannot be told"):
        hlo_analysis.matmul_flops(text)


def test_products_written_as_convolutions():
    """TPUs write batched products as convolutions whose window meets one element of a batch dimension each time."""
    text = """
ENTRY %main (a: f32[6,16,8], b: f32[6,8,4]) -> f32[6,16,4] {
  %a = f32[6,16,8]{2,1,0} parameter(0)
  %b = f32[6,8,4]{2,1,0} parameter(1)
  ROOT %c = f32[6,16,4]{2,1,0} convolution(%a, %b), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""  # noqa: E501
    assert hlo_analysis.matmul_flops(text) == 6 * 2 * 16 * 8 * 4


@pytest.mark.parametrize(
    ("per_row", "fixed", "capacity", "most"), [(3, 10, 100, 30), (50, 10, 100, 1), (99, 10, 100, 0)]
)
def test_the_largest_batch_is_found_in_few_compiles(per_row, fixed, capacity, most):
    tried = []

    def needs(n):
        tried.append(n)
        size = fixed + per_row * n + (n > 4) * 2  # not quite a line
        return size <= capacity, size if size <= capacity else None

    found = plan.most_that_fit(needs, {4: needs(4)}, fixed, capacity)
    assert found == max((n for n in range(50) if fixed + per_row * n + (n > 4) * 2 <= capacity and n), default=0)
    assert abs(found - most) <= 1
    assert len(tried) <= 7
    assert len(set(tried)) == len(tried)


def test_flops_of_cudnns_attention():
    """Two products of all queries with all keys forward, five backward."""
    B, L, N, K, H = 2, 16, 4, 2, 8
    shaped = [types.SimpleNamespace(aval=jax.ShapeDtypeStruct((B, L, n, H), jnp.bfloat16)) for n in (N, K, K)]

    def equation(name, stack=""):
        return types.SimpleNamespace(
            primitive=types.SimpleNamespace(name=f"dot_product_attention_{name}_wrapper"), params={},
            source_info=types.SimpleNamespace(name_stack=stack), invars=shaped,
        )  # fmt: skip

    calls = [equation("fwd"), equation("fwd", "rematted_computation"), equation("bwd")]
    once = 2 * B * N * L * L * H
    assert traced(types.SimpleNamespace(eqns=calls), {}) == (9 * once, 2 * once, 9 * once)


def test_the_refusal_says_what_it_would_take():
    told = plan.DoesNotFitError("RESOURCE_EXHAUSTED: … memory required for HLO temporaries (20.00G) exceeds …")
    assert told.needed == 20 * 2**30
    assert plan.DoesNotFitError("Ran out of memory in memory space hbm. Used 1.5M of 1.0M hbm.").needed == 3 * 2**19
    assert plan.DoesNotFitError("no figures").needed is None


TINY_PLAN = ["--config", "configs/demo.yaml", "--model.qwen3llada_model_path", str(TINY), "--training.max_length", "32"]


@pytest.mark.slow
def test_the_program(tmp_path, capsys):
    """A plan for eight simulated devices: memory is the state's share, weights are gathered, nothing is exchanged."""
    out = tmp_path / "plan.json"
    mesh = ["--mesh.data", "2", "--mesh.fsdp", "4"]
    assert plan.main([*TINY_PLAN, "--topology", "cpu:8", *mesh, "--json", str(out), "--training.remat", "full"]) == 0
    page, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert found["rows"] == 16
    memory = found["memory"]
    # norms are whole on every device, the rest in quarters; two moments of the same size, counters, the guard's history
    share = found["parameters"] * 4 / 4
    assert share < memory["parameters"] < 1.1 * share
    assert 0 < memory["moments"] - 2 * memory["parameters"] < 64 + 2 * 4 * bad_updates.WINDOW
    assert memory["total"] > memory["arguments"] + memory["temporaries"]
    kinds = {one[0] for one in found["collectives"]}
    assert "all-gather" in kinds
    assert "all-to-all" not in kinds
    needed, computed = found["ideal_flops"], found["traced_flops"]
    assert computed[1] > 0
    assert computed[0] == pytest.approx(found["compiled_flops"], rel=0.02)  # no device repeats another's work
    assert 0.5 < (computed[0] - computed[1]) / needed < 1.2
    for words in ("parameters", "temporaries at their peak", "all-gather", "recomputed (remat)", "simulated devices"):
        assert words in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "cpu:8", "--mesh.fsdp", "3"], "does not fit 8 device"),
        (["--topology", "cpu:8", "--mesh.fsdp", "8", "--training.batch_size", "12"], "12 rows .* data × fsdp = 8"),
        (["--topology", "cpu:0"], "cpu:N"),
        (["--topology", "h100:16"], "h100:1 to h100:8"),
        (["--topology", "h100"], "h100:1 to h100:8"),
        (["--topology", "a100:8"], r"h100:8, h200:8"),
        (["--topology", "cpu:9"], "JAX has started with 8"),
        (["--topology", "cpu:8", "--training.attention", "splash"], "needs a TPU"),
        (["--topology", "cpu:8", "--training.lrr", "1"], "lrr"),
        (["--topology", "cpu:8", "--model", "qwen3-9b"], "qwen3-8b"),
        ([], "--topology"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(q.InputError, match=message):
        plan.main([*TINY_PLAN, *arguments])


def test_a_plan_downloads_nothing():
    with pytest.raises(q.InputError, match=r"nowhere: no such folder .* --model"):
        plan.main([*TINY_PLAN[:2], "--topology", "cpu:8", "--model.qwen3llada_model_path", "nowhere"])


def test_without_the_tpu_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(q.InputError, match=r"pip install 'jax\[tpu\]'"):
        plan.main([*TINY_PLAN, "--topology", "v5e:4x4"])


def test_without_the_compiler_for_gpus(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(q.InputError, match=r"but no GPU: pip install 'jax\[cuda13\]'.*cpu:4"):
        plan.main([*TINY_PLAN, "--topology", "h200:4"])


@pytest.mark.slow
@pytest.mark.skipif(not hardware.cuda_version(), reason="needs a GPU's compiler, jax[cuda13], 3 GB of the disk")
@pytest.mark.parametrize("attention", ["auto", "xla"])
def test_a_plan_for_gpus(tmp_path, capsys, monkeypatch, attention):
    """For cards that are not here: cuDNN's attention, weights gathered, gradients scattered, no FLOPs twice."""
    out = tmp_path / "plan.json"
    arguments = [
        *TINY_PLAN, "--topology", "h100:4", "--mesh.data", "1", "--mesh.fsdp", "4", "--training.bf16", "true",
        "--training.attention", attention, "--json", str(out),
    ]  # fmt: skip
    assert plan.main(arguments) == 0
    page, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "4 devices (NVIDIA H100 80GB HBM3)" in page
    assert "of the 59.32 GiB that JAX takes of a GPU" in page
    assert found["compiled_flops"] == pytest.approx(found["traced_flops"][0], rel=0.02)
    assert any(name.startswith("__cudnn$fmha") for name in found["kernels"]) == (attention == "auto")
    kinds = {one[0] for one in found["collectives"]}
    assert {"all-gather", "reduce-scatter"} <= kinds
    assert "all-to-all" not in kinds
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.00001")
    assert plan.main(arguments) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_what_the_tpu_compiler_refuses(monkeypatch):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("Invalid TPU")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(hardware.topologies, "get_topology_desc", refuse)
    for name in libtpu.ANSWERS:
        monkeypatch.setenv(name, "as it was")  # so that what is set stays within this test
    with pytest.raises(q.InputError, match="no such slice"):
        plan.main([*TINY_PLAN, "--topology", "v9e:4x4"])


def test_simulated_devices_have_no_largest_batch():
    with pytest.raises(q.InputError, match="no memory"):
        plan.main([*TINY_PLAN, "--topology", "cpu:8", "--mesh.fsdp", "8", "--largest-batch"])


@pytest.mark.slow
def test_as_a_program():
    """JAX starts with the devices that the topology names; mistakes are one line."""
    done = run_program("train.plan", *TINY_PLAN, "--topology", "cpu:3", "--training.batch_size", "3")
    assert "cpu:3: 3 devices, mesh data 3" in done.stdout
    assert_one_line_error(
        run_program("train.plan", *TINY_PLAN, "--topology", "cpu:3", check=None), "16 rows", "data × fsdp = 3"
    )


@pytest.mark.slow
def test_the_step_never_holds_the_logits(monkeypatch):
    """Qwen3-0.6B, 8 rows of 4,096 tokens, eight-way fsdp: no array of B·L·V elements, nor a device's share of it."""
    B, L = 8, 4096
    architecture = dataclasses.replace(PRESETS["qwen3-0.6b"], mask_token_id=151_669, live_vocab_size=151_669)
    V = architecture.vocab_size
    config = Config(
        training=TrainingConfig(batch_size=B, max_length=L, bf16=True, remat="full"),
        dataset=DatasetConfig(name="none"),
        mesh=MeshConfig(1, 8, 1),
    )

    def temporaries():
        mesh = sharding.make_mesh(1, 8, 1)
        program, _ = plan.traced_step(config, architecture, mesh)
        with jax.set_mesh(mesh):
            compiled = program.lower().compile()
        largest = max(math.prod(shape) for _, shape in hlo_analysis.arrays(compiled.as_text()))
        return largest, compiled.memory_analysis().temp_size_in_bytes

    def temporaries_of_the_loss(loss):
        def on(shape, dtype, *axes):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding.spec(axes)))

        D, mesh = architecture.hidden_size, sharding.make_mesh(1, 8, 1)
        arrays = (
            on((B, L, D), jnp.bfloat16, "batch", "length", "act_embed"),
            on((V, D), jnp.float32, "vocab", "embed"),
            *(on((B, L), dtype, "batch", "length") for dtype in (jnp.int32, jnp.float32, jnp.bool_)),
        )
        with jax.set_mesh(mesh):
            program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(*arrays)
        return program.compile().memory_analysis().temp_size_in_bytes

    def naive(hidden, head, targets, weight, where, *, smoothing=0.0):
        logits = jnp.einsum("bld,vd->blv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (weight * ce).sum(), ce * where

    largest, held = temporaries()
    alone, alone_naively = temporaries_of_the_loss(cross_entropy), temporaries_of_the_loss(naive)
    monkeypatch.setattr(step, "cross_entropy", naive)
    naive_largest, naively = temporaries()
    print(f"bytes of temporaries on each device, step: {held:,}, naive {naively:,} ({naively / held:.2f} times)")
    print(f"loss alone: {alone:,}, naive {alone_naively:,} ({alone_naively / alone:.2f} times)")
    assert naive_largest >= B * L * V // 8  # so the text does show such an array
    assert largest < B * L * V // 8
    assert held < naively
    assert 2 * alone < alone_naively
