"""Plans: bytes, operations and the roofline of a step, for this machine and, where libtpu is there, for TPUs."""

import importlib.util
import os
import subprocess
import sys

import pytest

from configs import t2i
from contextdiff_jax import plan as plan_lib
from contextdiff_jax import runtime
from contextdiff_jax import task as task_lib


class Device:
    device_kind = "TPU v5 lite"


V5E = runtime.Runtime("tpu", 0.0, (Device(),) * 4, "v5e:2x2")


def example(**changes) -> plan_lib.StepCost:
    figures = dict(runtime=V5E, mesh={"data": 4}, parameters=5, batch_size=8, arguments=10**9, temporaries=10**9)
    return plan_lib.StepCost(**(figures | dict(flops=197e9, moved=819e6, sent=10**9, compile_seconds=1.0) | changes))


def test_the_roofline_is_the_slowest_of_three():
    bounds = example().roofline()
    assert bounds == pytest.approx({"computing": 1e-3, "memory": 1e-3, "network": 5e-3})
    text = "\n".join(example().lines())
    assert "at least 5 ms a step, bound by network" in text and "at most 1600 images/s" in text
    assert "2 GB of 16 GB" in text and "DOES NOT FIT" not in text
    assert "DOES NOT FIT" in "\n".join(example(temporaries=16 * 10**9).lines())


def test_bytes_sent_are_those_of_the_collectives_results():
    program = """
      %a = f32[8,4]{1,0} all-reduce(f32[8,4] %x), to_apply=%add
      %b = (bf16[2]{0}, s32[]) all-gather-start(bf16[1] %y)
      %c = f32[100]{0} add(f32[100] %z, f32[100] %z)
      %d = pred[3]{0} collective-permute(pred[3] %p)
    """
    assert plan_lib.bytes_sent(program) == 8 * 4 * 4 + 2 * 2 + 4 + 3


def test_the_batch_has_the_shapes_of_one_that_is_read():
    task = task_lib.build(t2i.get_config("tiny"), weights=False)
    read = next(task.train_iterator(0, 1))
    for name, spec in task.batch_spec().items():
        assert (spec.shape, spec.dtype) == (read[name].shape, read[name].dtype), name


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install libtpu")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("config", ["t2i.py:tiny", "t2i.py"])
def test_the_steps_compile_for_tpus(config, topology):
    """In a process of its own: what the TPU's compiler cannot do, it aborts on."""
    command = [sys.executable, "-m", "contextdiff_jax.main", f"--config={config}", "--mode=plan"]
    command.append(f"--topology={topology}")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # which are a CPU's here
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert "memory a chip" in done.stdout and "roofline: at least" in done.stdout
