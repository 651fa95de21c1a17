"""The words of the READMEs' measured sections, a table per language; benchmarks/readme.py puts the figures in."""

from __future__ import annotations

ENGLISH = {
    "machine": (
        "Measured on {cpu} ({cores} cores, {isa}), no GPU; Python {python}, {versions}. What was measured on another machine names it."
    ),
    "elsewhere": " Measured on {cpu} ({cores} cores, {isa}).",
    "cifar_title": "### CIFAR-10 (JPEG)",
    "cifar": (
        "The images of CIFAR-10 re-encoded as JPEG by others (what that costs in accuracy was not measured), as an image folder "
        "that is not part of this repository: {train:,} to train, {search:,} to choose on, {test:,} to test. Compare only with numbers "
        "from these "
        "images. One search of {trials} trials ({states}), seed {seed}, took {minutes:.0f} minutes "
        "after the teacher ({teacher_minutes:.1f} minutes, test accuracy {teacher_test}). Budget: parents {parent:g} epochs each, then "
        "{distil:g} to distil and {quantise:g} to quantise per trial. "
        "Command: `python -m search.run --space spaces/cifar10.yaml --data-dir FOLDER --trials {trials}`."
    ),
    "front_head": "| rank | student (width) | mean bits | search accuracy | KB | ms | x smaller | x faster |",
    "teacher": "teacher, FP32",
    "cifar_foot": (
        "{shown} of the front's {front} points; all are in `benchmarks/results/cifar10_front.csv`. "
        "On the test split: {exported} (n = {test:,}, 95 % intervals). ms: median of the OpenVINO engine, f32 for float "
        "layers, batch {batch}, {threads} thread. KB: 1000 bytes of packed weights."
    ),
    "changed": "`configs/cifar10.yaml` has other recipes since: the command takes another time today, and gives other points.",
    "digits_changed": (
        "Measured with an earlier version: today's demo begins with other candidates, takes another time and gives other points."
    ),
    "COMPLETE": "{count} complete",
    "PRUNED": "{count} stopped or skipped",
    "FAIL": "{count} failed",
    "digits_title": "### Digits",
    "digits": (
        "The demo's search (20 trials) with three seeds, each with its own split: {images} test images. Mean test accuracy of rank 0: "
        "{mean:.2f} %."
    ),
    "digits_head": "| seed | seconds | front | teacher: bytes, test | rank 0: bytes, test |",
    "points": "points",
    "parts_title": "### Speed of the parts",
    "throughput": (
        "**Distilling** ResNet-20 from ResNet-18, batch {batch}, 32 px, with kept teacher logits, in {precision}, {threads} threads: "
        "{ours:.0f} images/s. A plain loop "
        "(torchvision transforms in a DataLoader, float32, teacher in every step): {plain:.0f}, so {ratio:.1f} times "
        "({low:.1f}-{high:.1f}, {rounds} rounds in turn). Forward and backward alone: {bare:.0f}, of which {share:.0f} % are reached."
    ),
    "efficiency": (
        "**Against a search written by hand** (Optuna's TPE around a plain PyTorch loop, {trials} trials of {epochs} epochs on {images:,} "
        "images, ONNX Runtime, the same teacher): the loop's whole run takes {low:.0f} to {high:.0f} times as long as "
        "`search.run` takes to a better front (median {median:.0f}, {seeds} seeds, latencies of both timed again by one host). It is ahead "
        "with its first trial, the smallest student, not pruned, which its own recipe teaches (Muon, small images first); the loop "
        "trains what it draws by SGD, pruned, from initial weights. What each of these adds was not "
        "taken apart. [How it was compared](docs/protocol.md#against-a-search-written-by-hand)."
    ),
    "latency": (
        "**ResNet-20**, batch 1, 1 thread, median ms (PyTorch {torch} eager, f32: {eager}); *: its interval is wider than 2 %, or the "
        "machine was disturbed."
    ),
    "latency_head": "| runtime | INT8 | f32 | bf16 | INT8 against f32 | INT8 against eager |",
    "slower": (
        "Of {students} students INT8 is slower than f32, beyond both intervals, in OpenVINO for {openvino}; in ONNX Runtime for "
        "{onnxruntime}. All of an earlier export: networks with residual adds have fewer Q/DQ nodes for OpenVINO today."
    ),
    "none": "none",
    "repeat": (
        "**Repeatability:** {count} candidates, drawn until their medians were {apart:.0f} % apart, timed in two runs while "
        "another process kept one core busy half of the time. Order "
        "(Kendall's tau) {tau:.2f}, median difference {difference:.1f} %; a plain timer (the mean of 20 calls after 10 to "
        "warm up, so in far less time) in the same "
        "runs: {plain_tau:.2f}, {plain_difference:.1f} %."
    ),
    "gpu": (
        "**GPUs:** none was at hand, and TensorRT itself could not be installed, so no latency here is a GPU's. "
        "TensorRT-RTX {version} built {built} of {asked} engines without a GPU: {students} students, INT8-mixed and float, for "
        "{targets} (SM75 computes all layers in float, hybrids there in f16), with {warnings} warnings."
    ),
}

CHINESE = {
    "machine": "测量环境：{cpu}（{cores} 核，{isa}），无 GPU；Python {python}，{versions}。在其他机器上测量的数字会注明该机器。",
    "elsewhere": "测量于 {cpu}（{cores} 核，{isa}）。",
    "cifar_title": "### CIFAR-10（JPEG）",
    "cifar": (
        "由他人重新编码为 JPEG 的 CIFAR-10 图像（由此损失多少准确率，没有测量），以图像文件夹形式使用，不包含在本仓库中："
        "{train:,} 张训练，{search:,} 张用于选择，{test:,} 张测试。"
        "只能与同一批图像上的数字比较。一次 {trials} 个 trial 的搜索（{states}），种子 {seed}，教师训练完之后用时 {minutes:.0f} 分钟"
        "（教师本身 {teacher_minutes:.1f} 分钟，测试准确率 {teacher_test}）。预算：每个父网络 {parent:g} 个 epoch，之后每个 trial 蒸馏 "
        "{distil:g} 个、量化 {quantise:g} 个 epoch。"
        "命令：`python -m search.run --space spaces/cifar10.yaml --data-dir FOLDER --trials {trials}`。"
    ),
    "front_head": "| rank | 学生（宽度） | 平均比特数 | 搜索集准确率 | KB | 毫秒 | 缩小倍数 | 加速倍数 |",
    "teacher": "教师，FP32",
    "cifar_foot": (
        "此处列出前沿 {front} 个点中的 {shown} 个，全部见 `benchmarks/results/cifar10_front.csv`。"
        "测试集：{exported}（n = {test:,}，95 % 区间）。毫秒：OpenVINO 引擎单次调用用时的中位数，浮点层为 f32，"
        "batch {batch}，{threads} 个线程。KB：打包后的权重，以 1000 字节为单位。"
    ),
    "changed": "此后 `configs/cifar10.yaml` 的训练配方已经更改：今天运行同一命令，用时与结果点都会不同。",
    "digits_changed": "用较早的版本测量：今天的演示先尝试的候选不同，用时与结果点都会不同。",
    "COMPLETE": "完成 {count} 个",
    "PRUNED": "停止或跳过 {count} 个",
    "FAIL": "失败 {count} 个",
    "digits_title": "### 手写数字（digits）",
    "digits": ("演示用的搜索（20 个 trial），三个种子，各有自己的划分：{images} 张测试图像。rank 0 的平均测试准确率：{mean:.2f} %。"),
    "digits_head": "| 种子 | 秒 | 前沿 | 教师：字节，测试 | rank 0：字节，测试 |",
    "points": "个点",
    "parts_title": "### 各部分的速度",
    "throughput": (
        "**蒸馏** ResNet-18 到 ResNet-20，batch {batch}，32 px，使用保存的教师 logits，{precision}，"
        "{threads} 个线程：每秒 {ours:.0f} 张图像。"
        "普通循环（DataLoader 中的 torchvision 变换、float32、每步运行教师）：每秒 {plain:.0f} 张，前者是它的 {ratio:.1f} 倍"
        "（{low:.1f}-{high:.1f}，交替进行 {rounds} 轮）。仅前向与反向：每秒 {bare:.0f} 张，前者达到其 {share:.0f} %。"
    ),
    "efficiency": (
        "**与手写的搜索相比**（Optuna 的 TPE 加普通 PyTorch 循环，{trials} 个 trial，各 {epochs} 个 epoch，{images:,} 张图像，"
        "ONNX Runtime，同一教师）："
        "手写循环得到其最终前沿所用的时间，是 `search.run` 得到更好前沿所用时间的 "
        "{low:.0f} 到 {high:.0f} 倍（中位数 {median:.0f}，{seeds} 个种子，双方的延迟由同一进程重新测量）。"
        "领先来自它的第一个 trial：最小的、未剪枝的学生，用自己的训练方案（Muon，先用小图像）；"
        "手写循环用 SGD 从初始权重训练抽到的剪枝网络。"
        "两者各占多少未作分解。"
        "[比较方法](docs/protocol.md#against-a-search-written-by-hand)。"
    ),
    "latency": "**ResNet-20**，batch 1，1 个线程，中位数毫秒（PyTorch {torch} eager，f32：{eager}）；*：区间宽于 2 %，或机器受到干扰。",
    "latency_head": "| 运行时 | INT8 | f32 | bf16 | INT8 相对 f32 | INT8 相对 eager |",
    "slower": (
        "{students} 个学生中，INT8 慢于 f32 且超出两者区间的有：OpenVINO：{openvino}；ONNX Runtime：{onnxruntime}。"
        "以上为较早版本的导出：如今 OpenVINO 的残差网络 Q/DQ 节点更少。"
    ),
    "none": "无",
    "repeat": (
        "**可重复性：** {count} 个候选（抽取时要求中位数两两相差至少 {apart:.0f} %）在另一个进程占用一个核一半时间的情况下测量两次。"
        "两次排序的一致性（Kendall tau）{tau:.2f}，差异的中位数 {difference:.1f} %；"
        "同样两次中的普通计时（10 次预热后 20 次的平均，用时少得多）：{plain_tau:.2f}，{plain_difference:.1f} %。"
    ),
    "gpu": (
        "**GPU：** 没有可用的 GPU，也无法安装 TensorRT 本身，因此这里没有任何 GPU 延迟。TensorRT-RTX {version} 在没有 GPU 的情况下构建了 "
        "{asked} 个引擎中的 {built} 个：{students} 个学生，INT8 混合与浮点，面向 {targets}"
        "（SM75 上所有层以浮点计算，其中卷积与注意力结合的 hybrid_* 学生用 f16），"
        "警告 {warnings} 条。"
    ),
}

PAGES = {"README.md": ENGLISH, "README.zh-CN.md": CHINESE}
"""Which page is written in which language."""
