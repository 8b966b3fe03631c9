"""Every config loads, agrees with the published protocol, and is fitted to the machine or refused in one line."""

from __future__ import annotations

import pickle

import pytest

import detection  # noqa: F401
from adco.utils.errors import USER_ERROR, UserError
from detection.batch_scaling import BatchPlan
from detection.config import (
    NOT_GIVEN,
    check_machines,
    check_weights,
    choose_gpus,
    deviations,
    device_of,
    fit_to_hardware,
    load_config,
)
from detection.train_net import main, parser, user_error_inside
from detection.trainer import DetectionRun, run
from tests import ROOT

CONFIGS = ROOT / "detection" / "configs"
RUNNABLE = sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("Base-"))
TWINS = ("supervised", "random")
PUBLISHED = ("pascal_voc_R_50_C4_24k", "coco_R_50_C4_1x", "coco_R_50_C4_2x", "coco_R_50_FPN_1x", "coco_R_50_FPN_2x")
SMOKE = ("smoke_voc_R_18_C4", "smoke_coco_R_18_C4", "smoke_coco_R_18_FPN")

VOC_TRAIN, COCO_TRAIN = ("voc_2007_trainval", "voc_2012_trainval"), ("coco_2017_train",)


def config(name, *overrides):
    return load_config(str(CONFIGS / f"{name}.yaml"), overrides)


def test_the_configs_are_there():
    published = {f"{name}_{twin}" for name in PUBLISHED for twin in ("adco", *TWINS)}
    assert set(RUNNABLE) == published | set(SMOKE) | {f"{name}_random" for name in SMOKE}


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name.endswith(TWINS)])
def test_twins_differ_in_their_weights_alone(name):
    stem, _, twin = name.rpartition("_")
    cfg, original = config(name), config(stem if stem in SMOKE else f"{stem}_adco")
    wanted = {"random": "", "supervised": "detectron2://ImageNetPretrained/torchvision/R-50.pkl"}[twin]
    assert wanted == cfg.MODEL.WEIGHTS
    assert original.MODEL.WEIGHTS == NOT_GIVEN
    original.MODEL.WEIGHTS = wanted
    assert cfg == original


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_protocol_shared_by_all(name):
    cfg = config(name)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert ("StandardROIHeads" if "FPN" in name else "Res5ROIHeadsExtraNorm") == cfg.MODEL.ROI_HEADS.NAME
    assert cfg.MODEL.RESNETS.NORM == "SyncBN"
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.SOLVER.BASE_LR == 0.02
    assert cfg.TEST.PRECISE_BN.ENABLED
    assert (1 if name.startswith("smoke") else 8) == cfg.SOLVER.REFERENCE_WORLD_SIZE
    if "FPN" in name:
        assert {cfg.MODEL[owner].NORM for owner in ("FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")} == {"SyncBN"}


@pytest.mark.parametrize(
    ("name", "iterations", "steps", "warmup", "shortest", "masks", "classes", "train"),
    [
        ("pascal_voc_R_50_C4_24k_adco", 24000, (18000, 22000), 100, 480, False, 20, VOC_TRAIN),
        ("coco_R_50_C4_1x_adco", 90000, (60000, 80000), 1000, 640, True, 80, COCO_TRAIN),
        ("coco_R_50_C4_2x_adco", 180000, (120000, 160000), 1000, 640, True, 80, COCO_TRAIN),
        ("coco_R_50_FPN_1x_adco", 90000, (60000, 80000), 1000, 640, True, 80, COCO_TRAIN),
        ("coco_R_50_FPN_2x_adco", 180000, (120000, 160000), 1000, 640, True, 80, COCO_TRAIN),
    ],
)  # fmt: skip
def test_the_published_protocols(name, iterations, steps, warmup, shortest, masks, classes, train):
    cfg = config(name)
    assert (iterations, steps, warmup) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS)
    assert tuple(range(shortest, 801, 32)) == cfg.INPUT.MIN_SIZE_TRAIN
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333, 1333)
    assert (masks, classes) == (cfg.MODEL.MASK_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    assert train == cfg.DATASETS.TRAIN
    assert (("voc_2007_test",) if classes == 20 else ("coco_2017_val",)) == cfg.DATASETS.TEST
    topk = 1000 if "FPN" in name else 6000  # of each level, of all
    assert (topk, 1000) == (cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert cfg.TEST.PRECISE_BN.NUM_ITER == 200
    assert cfg.MODEL.RESNETS.DEPTH == 50


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_config_reports_on_itself(name):
    header = (CONFIGS / f"{name}.yaml").read_text().split("_BASE_")[0]
    assert all(word in header for word in (f"{name}.yaml", "Command:", "Hardware:", "Expected:"))


def test_smoke_configs_are_seeded():
    assert config("smoke_voc_R_18_C4").SEED >= 0
    assert config("smoke_coco_R_18_C4").SEED >= 0


@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN"])
@pytest.mark.parametrize(("gpus", "kept"), [(0, False), (1, False), (8, True)])
def test_the_norm_follows_the_number_of_processes(norm, gpus, kept):
    cfg = config("coco_R_50_C4_2x_adco", "MODEL.RESNETS.NORM", norm)
    notes = fit_to_hardware(cfg, gpus)
    assert (norm if kept else "BN") == cfg.MODEL.RESNETS.NORM
    assert ("cuda" if gpus else "cpu") == cfg.MODEL.DEVICE
    assert kept == (not notes)


def test_other_norms_are_left_alone():
    cfg = config("coco_R_50_C4_2x_adco", "MODEL.RESNETS.NORM", "FrozenBN")
    fit_to_hardware(cfg, 1)
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN"


def test_several_machines_without_gpus_and_mixed_precision_on_a_cpu_are_refused():
    with pytest.raises(UserError, match="several machines need GPUs"):
        fit_to_hardware(config("coco_R_50_C4_2x_adco"), 0, 2)
    with pytest.raises(UserError, match="mixed precision needs a GPU"):
        fit_to_hardware(config("coco_R_50_C4_2x_adco", "SOLVER.AMP.ENABLED", "True"), 0)


@pytest.mark.parametrize("norm", ["naiveSyncBN", "FrozenBN", "BN"])
def test_a_chosen_norm_goes_wherever_there_is_one(norm):
    cfg = config("coco_R_50_FPN_1x_adco")
    notes = fit_to_hardware(cfg, 8, norm=norm)
    assert {cfg.MODEL[owner].NORM for owner in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")} == {norm}
    assert len(notes) == 4
    cfg = config("coco_R_50_C4_1x_adco")
    fit_to_hardware(cfg, 8, norm=norm)
    assert (norm, "") == (cfg.MODEL.RESNETS.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM)


def test_machine_ranks_and_addresses_are_checked():
    check_machines(1, 0, "tcp://127.0.0.1:5000")
    check_machines(4, 3, "tcp://first.cluster:5000")
    for machines, rank, url in ((2, 2, "tcp://a:1"), (2, -1, "tcp://a:1"), (2, 0, "auto"), (2, 0, "tcp://127.0.0.1:1")):
        with pytest.raises(UserError, match="--machine-rank|--dist-url"):
            check_machines(machines, rank, url)


def test_the_launcher_gets_the_machines(monkeypatch, tmp_path):
    import detectron2.engine

    from detection import train_net

    seen = {}
    monkeypatch.setattr(train_net, "prepare", lambda args, started: (2, "cfg", "job"))
    monkeypatch.setattr(detectron2.engine, "launch", lambda function, gpus, **options: seen.update(options, gpus=gpus))
    given = ["--config-file", "x", "--num-machines", "3", "--machine-rank", "1", "--dist-url", "tcp://first:1"]
    assert main(given) == 0
    assert (seen["gpus"], seen["num_machines"], seen["machine_rank"], seen["dist_url"]) == (2, 3, 1, "tcp://first:1")


@pytest.mark.parametrize(
    ("asked", "device", "available", "gpus"),
    [(None, None, 0, 0), (None, None, 4, 1), (0, None, 4, 0), (4, None, 4, 4), (1, "cpu", 4, 0), (None, "cuda", 4, 1)],
)
def test_gpus_chosen(asked, device, available, gpus):
    assert choose_gpus(asked, device, available) == gpus


@pytest.mark.parametrize(
    ("asked", "device", "available"),
    [(1, None, 0), (8, None, 4), (-1, None, 4), (None, "cuda", 0), (0, "cuda", 4), (2, "cpu", 4)],
)
def test_gpus_refused(asked, device, available):
    with pytest.raises(UserError):
        choose_gpus(asked, device, available)


def test_the_last_device_given_counts():
    assert device_of(["MODEL.DEVICE", "cpu", "SEED", "1", "MODEL.DEVICE", "cuda"]) == "cuda"
    assert device_of(["SEED", "1"]) is None


@pytest.mark.parametrize("weights", [NOT_GIVEN, "/no/such/file.pkl"])
def test_weights_must_be_given(weights):
    with pytest.raises(UserError, match="convert_to_d2"):
        check_weights(weights)


def test_random_initialisation_must_be_asked_for():
    check_weights("")


@pytest.mark.parametrize(
    "argv",
    [
        ["--config-file", "no/such.yaml"],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "--as-given", "--batch", "0"],
        [],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "99"],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "MODEL.DEVICE", "cuda"],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "SOLVER.NO_SUCH_KEY", "1"],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "SOLVER.MAX_ITER"],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0"],
        ["--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "MODEL.WEIGHTS", "no.pkl"],
        [
            "--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "MODEL.WEIGHTS", "",
            "OUTPUT_DIR", "/proc/no/such",
        ],
        [
            "--config-file", str(CONFIGS / "smoke_voc_R_18_C4.yaml"), "--num-gpus", "0", "MODEL.WEIGHTS", "",
            "OUTPUT_DIR", "/tmp", "DATASETS.TEST", "('voc_2099_test',)", "DATASETS.TRAIN", "()",
        ],
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_2(argv, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_options_are_not_abbreviated():
    """`--trial 5` taken for `--trials 5` would be passed on to each trial, which would then run five of its own."""
    assert parser().parse_args(["--trials", "5"]).trials == 5
    with pytest.raises(SystemExit):
        parser().parse_args(["--trial", "5", "--num-gpus", "0"])


def test_only_what_can_move_a_score_is_a_deviation():
    given = ["MODEL.WEIGHTS", "x.pkl", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", "out"]
    assert deviations(given) == ("SOLVER.MAX_ITER 3",)


def test_a_run_can_be_sent_to_spawned_processes():
    plan = BatchPlan("linear", 2, 4, 1, ())
    job = DetectionRun("smoke_voc_R_18_C4", (), 2, plan, ({"name": "voc_2007_test"},), "pycocotools", 0.0)
    function, cfg, sent = pickle.loads(pickle.dumps((run, config("smoke_voc_R_18_C4"), job)))
    assert function is run
    assert sent == job
    assert cfg.SOLVER.IMS_PER_BATCH == 2


def test_a_spawned_process_passes_its_user_error_on():
    text = f"\n\n-- Process 1 terminated:\nTraceback ...\n{USER_ERROR}x.pkl: 0 of 265\n"
    assert str(user_error_inside(RuntimeError(text))) == "x.pkl: 0 of 265"
    assert user_error_inside(RuntimeError("CUDA out of memory")) is None
