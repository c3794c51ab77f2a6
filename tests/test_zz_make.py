import shutil, pathlib
def test_make(trained_run, drawn_cells):
    out = pathlib.Path("/tmp/w/desk_try/tiny"); shutil.rmtree(out, ignore_errors=True); shutil.copytree(trained_run, out)
    out = pathlib.Path("/tmp/w/desk_try/tinycells"); shutil.rmtree(out, ignore_errors=True); shutil.copytree(drawn_cells, out)
