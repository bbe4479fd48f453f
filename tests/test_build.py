"""The package builds without PyTorch, and its kernels share PyTorch's threads."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARIES = "print(sorted({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line}))"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("first", ["torch", "regrow"])
def test_kernels_and_torch_share_one_openmp_library(first):
    code = f"import {first}; import regrow._kernels, torch; {LIBRARIES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("libgomp") == 1, done.stdout


@pytest.mark.parametrize(
    "type_of_activations", [("NUMBER=float", "KERNELS=kFloat32"), ("NUMBER=Bfloat16", "KERNELS=kBfloat16")]
)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_compilers_understand_the_kernels_without_openmp(compiler, type_of_activations):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    variant = ["LANES=4", "REGISTERS=8", "VARIANT=portable", *type_of_activations, "ONE_THREAD"]
    quiet = ["-Wno-psabi", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
    flags = [
        "-std=c++20",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        *quiet,
        *(f"-DREGROW_{each}" for each in variant),
    ]
    done = subprocess.run([compiler, *flags, ROOT / "src/regrow/csrc/kernels.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_wheel(folder, **environment):
    """Make a wheel and unpack it into `package` of the folder; return the wheel and what pip printed."""
    pip = [sys.executable, "-m", "pip"]
    options = ["--no-deps", f"--config-settings=build-dir={folder / 'build'}", "--verbose"]
    # isolated: pip makes an environment of what pyproject.toml requires for building, and PyTorch is not in it
    command = [*pip, "wheel", *options, "--wheel-dir", folder, ROOT]
    # free of what `make` may ask for
    given = {name: value for name, value in os.environ.items() if name != "REGROW_REQUIRE_KERNELS"}
    done = subprocess.run(command, capture_output=True, text=True, env={**given, **environment})
    printed = done.stdout + done.stderr
    if done.returncode:
        return None, printed
    (wheel,) = folder.glob("regrow-*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", folder / "package", wheel], check=True)
    return wheel, printed


def run_with(folder, code):
    """Run code with the package that was unpacked; return what it printed, and its warnings."""
    # without `site` the installation under test is not the editable one
    paths = os.pathsep.join([str(folder / "package"), sysconfig.get_paths()["platlib"]])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


@pytest.mark.slow
def test_the_wheel_is_built_without_torch_and_works(tmp_path):
    wheel, _ = make_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("regrow/_kernels.") for name in names)
    assert not [name for name in names if name.endswith((".cpp", ".h"))]
    code = "import regrow, regrow.ops.native as native; print(regrow.__file__, native.instruction_set())"
    (line,), _ = run_with(tmp_path, code)
    where, instruction_set = line.split()
    assert Path(where).is_relative_to(tmp_path)
    assert instruction_set in ("portable", "avx2", "avx512")


TRAINING = """
import torch, regrow
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 10))
model = regrow.sparsify(model, 0.05)
regrow.sparsify(torch.nn.Sequential(torch.nn.Linear(256, 256)), 0.05)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
topology = regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=2, steps=8))
for _ in range(8):
    optimizer.zero_grad()
    model(torch.randn(4, 256)).square().mean().backward()
    optimizer.step()
print(regrow.__file__)
print(regrow.summary(model).nonzeros)
print(regrow.summary(model).stored)
"""


@pytest.mark.slow
def test_without_a_compiler_the_package_installs_without_kernels_and_says_so_once(tmp_path):
    wheel, printed = make_wheel(tmp_path, CXX="/nowhere/c++")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "retrying due to override" in printed
    (where, nonzeros, stored), warned = run_with(tmp_path, TRAINING)
    assert Path(where).is_relative_to(tmp_path)
    assert int(nonzeros) == round(0.05 * (256 * 256 + 10 * 256))
    assert stored.startswith("0 of 2 weights stored sparsely")
    assert "without its compiled kernels" in stored
    assert warned.count("without its compiled kernels") == 1


@pytest.mark.slow
def test_who_asks_for_the_kernels_gets_them_or_an_error(tmp_path):
    wheel, printed = make_wheel(tmp_path, CXX="/nowhere/c++", REGROW_REQUIRE_KERNELS="1")
    assert wheel is None
    assert "CMake configuration failed" in printed
