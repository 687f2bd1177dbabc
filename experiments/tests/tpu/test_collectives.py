"""Collectives are found where they are, inside and outside of a condition, each once."""

import pytest

from experiments.tpu.collectives import read

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.3 (input: f32[8,16]) -> f32[2,16] {
  %input = f32[8,16]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[8,16]{1,0:T(8,128)} all-reduce(%input), channel_id=9, to_apply=%region_0.1
  ROOT %cut = f32[2,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %x, %y)
}

%async (p.1: bf16[4]) -> bf16[4] {
  %p.1 = bf16[4]{0:T(256)} parameter(0)
  ROOT %all-reduce.8 = bf16[4]{0:T(256)} all-reduce(%p.1), channel_id=8, to_apply=%region_0.1
}

%rest (p.2: f32[16]) -> f32[16] {
  ROOT %p.2 = f32[16]{0} parameter(0)
}

%due (p.3: f32[16]) -> f32[16] {
  %p.3 = f32[16]{0:T(256)S(1)} parameter(0)
  %sums = (f32[16]{0:T(256)S(1)}, /*index=5*/f32[16,16]{1,0:T(8,128)S(1)}) all-reduce(%p.3, %q), \
channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, to_apply=%region_0.1
  ROOT %part = f32[16]{0} get-tuple-element(%sums), index=0
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %flag = s32[] constant(1)
  %halves = bf16[3]{0:T(256)(128)(2,1)S(1)} all-reduce(%y), channel_id=1, to_apply=%region_0.1
  %begun = ((bf16[4]{0}), bf16[4]{0}, u32[]) async-start(%y), calls=%async
  %ended = bf16[4]{0} async-done(%begun), calls=%async
  %scattered = f32[2,16]{1,0} fusion(%m), kind=kCustom, calls=%all-reduce-scatter.3
  %small = f32[4]{0} slice(%x), slice={[0:4]}
  %gathered = (f32[4]{0}, f32[16]{0}) all-gather-start(%small), channel_id=4, dimensions={0}
  %moved = pred[7]{0} collective-permute(%z), channel_id=5, source_target_pairs={{0,1}}
  %split = f32[4]{0} reduce-scatter(%x), channel_id=6, to_apply=%region_0.1
  ROOT %out = f32[16]{0} conditional(%flag, %x, %x), branch_computations={%rest, %due}, \
metadata={op_name="jit(step)/cond" stack_frame_id=63}
}
"""
ALWAYS = {
    "all-reduce": 2 * 3 + 2 * 4,
    "reduce-scatter": 4 * 8 * 16 + 4 * 16,
    "all-gather": 4 * 16,
    "collective-permute": 7,
}
IN_THE_BRANCH = 4 * (16 + 16 * 16)
OLD_STYLE = "true_computation=%due, false_computation=%rest"


@pytest.mark.parametrize("style", ["branch_computations={%rest, %due}", OLD_STYLE])
def test_a_branch_counts_only_where_it_is_chosen(style) -> None:
    """By hand: bytes by kind, with and without the branch."""
    found = read(PROGRAM.replace("branch_computations={%rest, %due}", style))
    assert found.least.bytes == ALWAYS
    all_reduce = ALWAYS["all-reduce"] + IN_THE_BRANCH
    assert found.most.bytes == ALWAYS | {"all-reduce": all_reduce}
    assert found.least.counts["all-reduce"] == 2
    assert found.most.counts["all-reduce"] == 3
    assert found.most.counts["collective-permute"] == 1


def test_a_program_without_any() -> None:
    """Nothing, in either case."""
    found = read("ENTRY %main (x: f32[4]) -> f32[4] {\n  ROOT %x = f32[4]{0} parameter(0)\n}\n")
    assert not found.least.bytes
    assert not found.most.counts
