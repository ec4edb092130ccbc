"""One place looks for the C compiler and for the folder of what it made, without torch."""

import subprocess
import sys

import pytest

from pimlip_zoo.compiled import compiler


@pytest.mark.compiler
def test_a_refused_source_gives_the_compiler_s_own_words(tmp_path):
    source = tmp_path / "wrong.c"
    source.write_text("int answer(void) { return 6 * seven; }")
    with pytest.raises(compiler.CompilerError, match=r"failed: .*error.*seven"):
        compiler.compile_library(source, tmp_path / "wrong.so", flags=())
    assert not (tmp_path / "wrong.so").exists()


def test_a_folder_that_cannot_be_made_is_replaced_by_one_of_this_process(tmp_path):
    (tmp_path / "file").write_text("")
    folder = compiler.writable(tmp_path / "file" / "kernels")
    assert folder.is_dir()
    assert folder == compiler.writable(tmp_path / "file" / "kernels")
    assert compiler.writable(tmp_path / "new" / "kernels") == tmp_path / "new" / "kernels"


def test_a_native_model_s_library_needs_no_torch():
    code = "import sys, pimlip_zoo.deploy.native.library; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
