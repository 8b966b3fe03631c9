"""The kNN probe on a GPU gives the same whether the backbone is compiled or not, and is not compiled itself: the check
of benchmarks/on_gpu/sections/correctness.py. What `compile` then makes of the backbone is in test_compute.py."""

from benchmarks.on_gpu.sections import correctness


def test_the_probe_is_the_same_before_and_after_compile(tmp_path, gpu):
    images = correctness.write_images(tmp_path / "images", small=True)
    recipe = correctness.small_recipe("adco", images, small=True)
    finding = correctness.probe_is_not_compiled(recipe, gpu, backend="eager")
    assert finding.passed, finding.facts
