"""Build of the compiled CPU kernels; everything else stands in pyproject.toml."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, has_flag
from pybind11.setup_helpers import build_ext as pybind11_build_ext
from setuptools import find_packages, setup
from setuptools.modified import newer_group

# One translation unit an instruction set; which of them runs is chosen at run time.
X86 = {
    "kernels_baseline": [],
    "kernels_avx2": ["-mavx2", "-mfma"],
    "kernels_avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
        "-mprefer-vector-width=512",
    ],
}
ARM = {"kernels_neon": [], "kernels_neon_dotprod": ["-march=armv8.2-a+dotprod"]}


def instruction_sets() -> dict[str, list[str]]:
    """The files and flags of the machine that is compiled for."""
    machine = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).lower()
    if machine.endswith(("x86_64", "amd64")):
        return X86
    return ARM if machine.endswith(("aarch64", "arm64")) else {"kernels_baseline": []}


class build_ext(pybind11_build_ext):
    """Compiles each instruction set's file with its own flags, which setuptools cannot."""

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            raise RuntimeError("the CPU kernels need GCC or Clang; MSVC is not supported")
        flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
        if has_flag(self.compiler, "-Wno-maybe-uninitialized"):
            flags.append("-Wno-maybe-uninitialized")  # GCC 12's own AVX-512 header sets it off
        ext.extra_link_args.append("-pthread")
        if sanitizers := os.environ.get("MULFREE_SANITIZE"):
            flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
            flags.append("-fno-wrapv")  # which Python's own flags bring, and which hides overflows
            ext.extra_link_args.append(f"-fsanitize={sanitizers}")
        ext.extra_compile_args += flags

        def compiled(name: str) -> str:
            """The object file of an instruction set, compiled unless it is up to date."""
            source = f"cpu/{name}.cpp"
            (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, *ext.depends], target):
                own = [*flags, *instruction_sets()[name]]
                self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=own)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects += pool.map(compiled, instruction_sets())
        super().build_extension(ext)


setup(
    packages=[
        *find_packages(include=["mulfree_cupy*"]),
        "mulfree_cupy.cuda",
        "mulfree_cupy.emulator_headers",
    ],
    package_dir={
        "mulfree_cupy.cuda": "cuda",
        "mulfree_cupy.emulator_headers": "cpu/emulator",
    },
    package_data={
        "mulfree_cupy.cuda": ["**/*.cu", "**/*.cuh"],
        "mulfree_cupy.emulator_headers": ["**/*"],
    },
    ext_modules=[
        Pybind11Extension(
            "mulfree_cupy._cpu",
            ["cpu/module.cpp", "cpu/threads.cpp"],
            cxx_std=17,
            depends=sorted(map(str, Path("cpu").glob("*.[ch]pp"))),
            optional=True,  # without a compiler the NumPy kernels serve
        )
    ],
    cmdclass={"build_ext": build_ext},
)
