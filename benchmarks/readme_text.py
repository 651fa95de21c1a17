"""The words of the READMEs' measured sections, a table per language; benchmarks/readme.py puts the figures in."""

from __future__ import annotations

ENGLISH = {
    "machine": "Measured on {cpu} ({cores} cores, {isa}), no GPU; Python {python}, {versions}.",
    "cifar_title": "### CIFAR-10 (JPEG)",
    "cifar": (
        "The images of CIFAR-10 re-encoded as JPEG, as an image folder: {train:,} to train, {search:,} to choose on, {test:,} to test. "
        "Compare only with numbers from these images. One search of {trials} trials ({states}), seed {seed}, took {minutes:.0f} minutes "
        "after the teacher ({teacher_minutes:.1f} minutes, test accuracy {teacher_test}). Budget: parents {parent:g} epochs each, then "
        "{distil:g} to distil and {quantise:g} to quantise per trial. "
        "Command: `python -m search.run --space spaces/cifar10.yaml --data-dir FOLDER --trials {trials}`."
    ),
    "front_head": "| rank | student (width) | mean bits | search accuracy | KB | ms | x smaller | x faster |",
    "teacher": "teacher, FP32",
    "cifar_foot": (
        "On the test split: {exported} (n = {test:,}, 95 % intervals). ms: median of the OpenVINO engine, f32 for float "
        "layers, batch {batch}, {threads} thread. KB: 1000 bytes of packed weights."
    ),
    "digits_title": "### Digits",
    "digits": (
        "The demo's search (20 trials) with three seeds, each with its own split: {images} test images. Mean test accuracy of rank 0: "
        "{mean:.2f} %. `small` is the most accurate point, on the search split, in at most 1/20 of the teacher's bytes."
    ),
    "digits_head": "| seed | seconds | front | teacher: bytes, test | rank 0: bytes, test | small: bytes, test |",
    "points": "points",
}

CHINESE = {
    "machine": "测量环境：{cpu}（{cores} 核，{isa}），无 GPU；Python {python}，{versions}。",
    "cifar_title": "### CIFAR-10（JPEG）",
    "cifar": (
        "CIFAR-10 的图像重新编码为 JPEG，以图像文件夹形式给出：{train:,} 张训练，{search:,} 张用于选择，{test:,} 张测试。"
        "只能与同一批图像上的数字比较。一次 {trials} 个 trial 的搜索（{states}），种子 {seed}，在教师之后用时 {minutes:.0f} 分钟"
        "（教师 {teacher_minutes:.1f} 分钟，测试准确率 {teacher_test}）。预算：每个父网络 {parent:g} 个 epoch，之后每个 trial 蒸馏 "
        "{distil:g} 个、量化 {quantise:g} 个 epoch。"
        "命令：`python -m search.run --space spaces/cifar10.yaml --data-dir FOLDER --trials {trials}`。"
    ),
    "front_head": "| rank | 学生（宽度） | 平均位数 | 搜索集准确率 | KB | 毫秒 | 缩小倍数 | 加速倍数 |",
    "teacher": "教师，FP32",
    "cifar_foot": (
        "测试集：{exported}（n = {test:,}，95 % 区间）。毫秒：OpenVINO 引擎的中位数，浮点层为 f32，"
        "batch {batch}，{threads} 个线程。KB：打包后权重的 1000 字节。"
    ),
    "digits_title": "### 手写数字（digits）",
    "digits": (
        "演示用的搜索（20 个 trial），三个种子，各有自己的划分：{images} 张测试图像。rank 0 的平均测试准确率：{mean:.2f} %。"
        "`small` 是不超过教师字节数 1/20 的点中，搜索集准确率最高的一个。"
    ),
    "digits_head": "| 种子 | 秒 | 前沿 | 教师：字节，测试 | rank 0：字节，测试 | small：字节，测试 |",
    "points": "个点",
}

PAGES = {"README.md": ENGLISH, "README.zh-CN.md": CHINESE}
"""Which page is written in which language."""
