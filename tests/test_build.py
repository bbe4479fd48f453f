"""The package builds without PyTorch, and its kernels share PyTorch's threads."""

import os
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


@pytest.mark.slow
def test_the_wheel_is_built_without_torch_and_works(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    options = ["--quiet", "--no-deps", f"--config-settings=build-dir={tmp_path / 'build'}"]
    # isolated: pip makes an environment of what pyproject.toml requires for building, and PyTorch is not in it
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("regrow-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("regrow/_kernels.") for name in names)
    assert not [name for name in names if name.endswith((".cpp", ".h"))]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", tmp_path / "package", wheel], check=True)
    # without `site` the installation under test is not the editable one
    paths = os.pathsep.join([str(tmp_path / "package"), sysconfig.get_paths()["platlib"]])
    code = "import regrow, regrow.ops.native as native; print(regrow.__file__, native.instruction_set())"
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    where, instruction_set = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert instruction_set in ("portable", "avx2", "avx512")
