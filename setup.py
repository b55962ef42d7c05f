"""Build of the compiled CPU kernels; everything else is in pyproject.toml."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind11_build_ext
from setuptools import find_packages, setup
from setuptools.errors import CompileError
from setuptools.modified import newer_group

# One translation unit per instruction set, the slowest to compile first; chosen at run time.
AVX512 = [
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "-mprefer-vector-width=512",
]
X86 = {
    "cpu/kernels_avx512.cpp": AVX512,
    "cpu/kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "cpu/kernels_avx512_amd.cpp": AVX512,
    "cpu/kernels_avx512_popcount.cpp": [*AVX512, "-mavx512vpopcntdq"],
    "cpu/kernels_baseline.cpp": ["-O2"],  # half the compile time; AVX2 is in processors since 2013
    "cpu/kernels_avx512_distances.cpp": AVX512,
    "cpu/kernels_avx2_distances.cpp": ["-mavx2", "-mfma"],
    "cpu/kernels_baseline_distances.cpp": [],
}
ARM = {
    "cpu/kernels_neon_dotprod.cpp": ["-march=armv8.2-a+dotprod"],
    "cpu/kernels_neon.cpp": [],
    "cpu/kernels_neon_dotprod_distances.cpp": ["-march=armv8.2-a+dotprod"],
    "cpu/kernels_neon_distances.cpp": [],
}
INSTRUCTION_SETS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}.get(
    platform.machine().lower(),
    {"cpu/kernels_baseline.cpp": [], "cpu/kernels_baseline_distances.cpp": []},
)
# Every source with its own flags.
SOURCES = {
    **INSTRUCTION_SETS,
    **{str(file): [] for file in sorted(Path("cpu/bindings").glob("*.cpp"))},
    "cpu/engine/threads.cpp": [],
}


class build_ext(pybind11_build_ext):
    """Compiles every source with its own flags and in parallel; setuptools can do neither."""

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            raise CompileError("the CPU kernels need GCC or Clang; MSVC is not supported")
        flags = [*ext.extra_compile_args, "-O3", "-pthread", "-Wall", "-Wextra"]
        # GCC 12's own AVX-512 header sets the first off, which Clang does not know.
        flags += ["-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
        ext.extra_link_args.append("-pthread")
        last = []
        if sanitizers := os.environ.get("MULFREE_SANITIZE"):
            last = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
            last.append("-fno-wrapv")  # undoes Python's -fwrapv, which hides overflows
            ext.extra_link_args.append(f"-fsanitize={sanitizers}")

        def compiled(source: str) -> str:
            """The object file of a source, compiled unless it is up to date."""
            (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, *ext.depends], target):
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*flags, *SOURCES[source], *last],
                )
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects += pool.map(compiled, SOURCES)
        ext.sources, ext.depends = [], [*SOURCES, *ext.depends]
        super().build_extension(ext)


# Folders of sources that are installed as data, with their subfolders.
SOURCE_FOLDERS = {
    ".".join([package, *sub.relative_to(folder).parts]): str(sub)
    for package, folder in {
        "mulfree_cupy.cuda": "cuda",
        "mulfree_cupy.emulator_headers": "cpu/emulator",
    }.items()
    for sub in [Path(folder), *filter(Path.is_dir, Path(folder).rglob("*"))]
}

setup(
    packages=[*find_packages(include=["mulfree_cupy*"]), *SOURCE_FOLDERS],
    package_dir=SOURCE_FOLDERS,
    package_data={
        **{package: ["*"] for package in SOURCE_FOLDERS},
        "mulfree_cupy": ["py.typed"],
        "mulfree_cupy.lessons": ["page.html"],
    },
    ext_modules=[
        Pybind11Extension(
            "mulfree_cupy._cpu",
            list(SOURCES),
            cxx_std=17,
            depends=["setup.py", *sorted(map(str, Path("cpu").glob("**/*.hpp")))],
            # Without a compiler the NumPy kernels are used; not in a release.
            optional=not os.environ.get("MULFREE_REQUIRE_KERNELS"),
        )
    ],
    cmdclass={"build_ext": build_ext},
)
