"""The signatures of `fab why`, one record each. To add one, see CONTRIBUTING.md.

The first record that matches wins, so more specific records come before more general ones.
"""

from __future__ import annotations

from torchfab.why.causes import Kind
from torchfab.why.signature import Fact, Signature
from torchfab.why.speakers import Speaker

_SMALLER = "a smaller batch or a shorter sequence, gradient checkpointing, or sharding (FSDP)"
_LESS = "less memory per rank (data loader workers, caches), or lift the limit: ulimit -v, the control group"
_INTERFACE = "name the interface with --env NCCL_SOCKET_IFNAME=... or GLOO_SOCKET_IFNAME=...; fab doctor, fab network"
_HANG = f"see what the rank that is behind does: fab stacks, while it hangs; for the network: {_INTERFACE}"
_REACH = "fab doctor: can every node reach node 0 and its port?"
_WITHOUT = "fab doctor; launch without that node"
_FILES = (
    "a higher limit of open files there (ulimit -n, /etc/security/limits.conf; a new login sees it), or fewer workers; "
    "of data loaders also: torch.multiprocessing.set_sharing_strategy('file_system')"
)
_INSTALL = "install it in the interpreter that runs there (--python), or copy your code there: fab sync"
_REBUILD = "build or install it again against the torch, CUDA and C library of that node; fab doctor compares the nodes"
_ONE_FIRST = "download on one rank first, or once before the job, and then --env HF_HUB_OFFLINE=1"
_PEER = "see that rank's log and node; if nothing failed there, check the link: fab network"
_ONE_GPU = "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])); no host twice in the hosts file"
_PEERS = (Speaker.DISTRIBUTED, Speaker.COMMUNICATION)

MEMORY = (
    Signature(
        *(Kind.MEMORY, "device-memory"),
        words="a GPU had no memory left: {line}",
        fix=f"{_SMALLER}; if something else holds the GPU: nvidia-smi there",
        patterns=(
            r"\b(?:CUDA|HIP|NPU|XPU|HPU|MPS|MUSA|MLU) (?:backend )?out of memory",
            *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
            *(r"Cuda failure (?:\d+ )?'out of memory'", r"Failed to CUDA (?:calloc|malloc) (?:async )?\d+ bytes"),
            *(r"\btorch\.(?:cuda\.)?OutOfMemoryError\b", "CUDA_ERROR_OUT_OF_MEMORY", "hipErrorOutOfMemory"),
            *(r"Tried to allocate \d[\d.]* [KMGT]i?B", "cuda runtime error \\(2\\) ?: out of memory"),
            *("HIP error: out of memory", "OUT_OF_DEVICE_MEMORY", "NPU function error: .*out of memory"),
            r"Free memory on device .* is less than desired GPU memory",
            "No available memory for the cache blocks|No executable batch size found",
            r"KV cache (?:memory )?is needed, which is larger than|not enough (?:GPU )?memory for (?:the )?KV cache",
            r"(?<!Allocator: )\b[Nn]ot enough (?:GPU |device )?memory\b|[Ii]nsufficient (?:GPU|device) memory",
            "RESOURCE_EXHAUSTED|Out of memory (?:while trying to allocate|error on GPU)",
            r"non-zero status: 2 cuMem\w+ failed",  # NVSHMEM prints CUresult
        ),
        example="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
        source="torch/cuda, torch_npu, intel_extension_for_pytorch",
        since="torch 0.4",
    ),
    Signature(
        *(Kind.MEMORY, "cublas-start"),
        words="cuBLAS could not start on its GPU, most often because its memory is full: {line}",
        fix=f"to see what else uses that GPU: nvidia-smi there; {_ONE_GPU}; {_SMALLER}",
        patterns=("CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED"),
        example="RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        source="torch/aten/cuda",
    ),
    Signature(
        *(Kind.SCRIPT, "inotify-limit"),
        words="the user's limit of watched files is reached: {line}",
        fix="watch fewer files, or raise fs.inotify.max_user_watches and max_user_instances with sysctl there",
        patterns=(r"inotify (?:watch|instance) limit", r"\binotify\b.*(?:[Ee]rrno 2[48]\b|No space|Too many)"),
        example="OSError: [Errno 28] inotify watch limit reached",
        source="watchdog",
    ),
    Signature(
        *(Kind.SCRIPT, "open-files"),  # before shared-memory, whose messages may hold it
        words="it had too many files open: {line}",
        fix=_FILES,
        patterns=("Too many open files", r"\b[Ee]rrno:? 24\b", "received 0 items of ancdata"),
        example="OSError: [Errno 24] Too many open files: '/data/x'",
    ),
    Signature(
        *(Kind.MEMORY, "shared-memory"),
        words="/dev/shm was full, or is too small: {line}",
        fix="fewer data loader workers, or a larger /dev/shm (of containers: --shm-size); "
        "to see leftovers: ls -l /dev/shm",
        patterns=(
            *("Unexpected bus error encountered in worker", "insufficient shared memory"),
            # Another reason than a full disk must not match: the files of a worker that died are gone too.
            "unable to (?:mmap|write to|resize|allocate).*(?:shared memory|file </torch_)",
            "unable to open (?:shared memory|file </torch_).*No space left",
            "Error while creating shared memory segment",  # NCCL
            *(r"failed to extend /dev/shm/", "posix_fallocate failed ?: No space left on device"),
            r"SemLock\b.*(?:\n.*){0,3}?Errno 28\b",  # Python's semaphores are files of /dev/shm
            "(?:Errno 28|No space left on device).*'/(?:dev/shm/|psm_)",
            r"DataLoader worker \(pid\S* \d+\) is killed by signal: Bus error",
        ),
        example="RuntimeError: unable to write to file </torch_860_2407853_0>: No space left on device (28)",
        source="torch/aten/MapAllocator, NCCL shmutils",
    ),
    Signature(
        *(Kind.MEMORY, "locked-memory"),
        words="it is not allowed to lock the memory that its network adapter needs: {line}",
        fix="ulimit -l unlimited there (memlock in /etc/security/limits.conf; of containers: --ulimit memlock=-1); "
        "fab doctor",
        patterns=(r"ibv_\w+ .*Cannot allocate memory", r"NET/\w+\W.*[Rr]egister memory .*Cannot allocate memory"),
        example="misc/ibvwrap.cc:252 NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory",
        source="NCCL ibvwrap",
    ),
    Signature(
        *(Kind.MEMORY, "host-memory"),
        words="it requested more memory than its limit allows: {line}",
        fix=_LESS,
        patterns=(
            *(r"^(?:\w+\.)*MemoryError\b", "DefaultCPUAllocator: (?:can't|not enough memory)", "std::bad_alloc"),
            *("Cannot allocate memory", r"\b[Ee]rrno:? 12\b", r"Unable to allocate \S+ \w+ for an array"),
            "ArrowMemoryError|pyarrow.lib.ArrowMemoryError",
        ),
        example="RuntimeError: [enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 8 bytes",
    ),
    Signature(
        *(Kind.MEMORY, "host-memory"),
        words="one of its processes was killed, most often by the kernel because the host's memory ran out: {line}",
        fix=_LESS,
        patterns=(
            r"DataLoader worker \(pid\S* \d+\) (?:is|was) killed by signal: Killed",
            r"[Dd]etected \d+ oom[_-]kill event",
            *(r"srun: error: .*: Out Of Memory", "slurmstepd: error: .*[Ee]xceeded .*memory limit"),
            r"(?:BrokenProcessPool|process in the process pool was terminated abruptly)",
            "subprocesses has abruptly died during map operation",
            *("Task was killed due to the node running low on memory", "ray.exceptions.OutOfMemoryError"),
            "ObjectStoreFullError",
            r"TerminatedWorkerError: A worker process managed by the executor was unexpectedly terminated",
            r"line \d+:\s+\d+ Killed\b",
            # Compilers
            r"Killed signal terminated program \w+|internal compiler error: Killed\b",
            r"'\w+' died due to signal 9\b|unable to execute command: Killed",
        ),
        example="RuntimeError: DataLoader worker (pid 108439) is killed by signal: Killed.",
        source="torch/utils/data/_utils/signal_handling.py, concurrent.futures, datasets, Slurm, Ray, bash, compilers",
    ),
)
STORAGE = (
    Signature(
        *(Kind.SCRIPT, "quota"),
        words="the user's quota on a file system is used up: {line}",
        fix="delete files, or request more: quota -s; the quota is per user, on all nodes",
        patterns=("Disk quota exceeded", r"\b[Ee]rrno:? 122\b"),
        example="OSError: [Errno 122] Disk quota exceeded: 'x.pt'",
    ),
    Signature(
        *(Kind.NODE, "disk-full"),
        words="no space was left on a disk: {line}",
        fix="free space there, or write to another disk",
        patterns=("No space left on device", r"\b[Ee]rrno:? 28\b"),
        confirm=Fact.DISK,
        example="OSError: [Errno 28] No space left on device",
    ),
    Signature(
        *(Kind.NODE, "write-failed"),
        words="a file could not be written whole, most often because the disk was full or a quota used up: {line}",
        fix="free space there (df, quota -s), or write to another disk",
        patterns=(
            r"inline_container\.cc:\d+\].*(?:unexpected pos|file write failed)",
            "PytorchStreamWriter failed writing",
            r"[Uu]nable to (?:extend|flush) file|short write|File too large",
        ),
        confirm=Fact.DISK,
        example="RuntimeError: [enforce fail at inline_container.cc:603] . unexpected pos 1867968 vs 1867862",
        source="torch/serialization.py, h5py",
        since="torch 1.6",
    ),
    Signature(
        *(Kind.SCRIPT, "no-locks"),
        words="a file system has no file locks: {line}",
        fix="put caches and locks on a local disk (--env HF_HOME=/tmp/..., HF_DATASETS_CACHE), or mount it with locks",
        patterns=(
            "No locks available",
            r"\b[Ee]rrno:? 37\b",
            r"\b[Ee]rrno:? 38\b.*flock|flock.*Function not implemented",
        ),
        example="OSError: [Errno 37] No locks available",
    ),
    Signature(
        *(Kind.NODE, "filesystem-sick"),
        words="a file system cannot be used: {line}",
        fix="use another path; if the kernel reports a fault of its disk or server: launch without that node",
        patterns=(
            *("Read-only file system", "Stale file handle", r"\b[Ee]rrno:? (?:30|108|116|117|121|112)\b"),
            *(r"\b[Ee]rrno:? 107\b.*: '/", r"\b[Ee]rrno:? 5\b", r"Transport endpoint is not connected: '/"),
        ),
        confirm=Fact.FILE_SYSTEM,
        example="OSError: [Errno 116] Stale file handle: '/data/x'",
    ),
)
DEVICES = (
    Signature(
        *(Kind.NODE, "fabric-sick"),
        words="the fabric of the node's GPUs (NVSwitch) is not ready: {line}",
        fix="systemctl status nvidia-fabricmanager there: it needs the driver's version, and no errors; "
        "launch without that node",
        patterns=(
            *("system not yet initialized", "Failed to bind NVLink SHARP"),
            "error in the Fabric Manager or NVSwitches",
        ),
        example="RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        source="CUDA",
    ),
    Signature(
        *(Kind.NODE, "gpu-sick"),
        words="a GPU of the node does not work: {line}",
        fix=_WITHOUT,
        patterns=(
            *("uncorrectable (?:ECC|NVLink) error", "GPU is lost", "Unable to determine the device handle"),
            "GPU has fallen off the bus",
        ),
        example="RuntimeError: CUDA error: uncorrectable ECC error encountered",
        source="CUDA",
    ),
    Signature(
        *(Kind.NODE, "driver-too-old"),
        words="the NVIDIA driver of the node is too old for its torch: {line}",
        fix="update the driver there, or install a torch of an older CUDA: fab doctor compares the nodes",
        patterns=("NVIDIA driver on your system is too old", "CUDA driver version is insufficient"),
        confirm=Fact.OTHERS_RAN,
        example="RuntimeError: The NVIDIA driver on your system is too old (found version 10010).",
    ),
    Signature(
        *(Kind.NODE, "driver-mismatch"),
        words="the NVIDIA driver of the node and its libraries are incompatible: {line}",
        fix="a driver was updated without a reboot, or a container brings libraries of another one: nvidia-smi there; "
        "fab doctor",
        patterns=(
            "unsupported display driver / cuda driver combination|Driver/library version mismatch",
            "NVML/RM version mismatch|NVMLError_LibRmVersionMismatch",
            r"\bError 80[34]\b|forward compatibility was attempted on non supported HW",
        ),
        confirm=Fact.OTHERS_RAN,
        example="RuntimeError: Error 803: system has unsupported display driver / cuda driver combination",
        source="CUDA, NVML",
    ),
    Signature(
        *(Kind.NODE, "gpu-busy"),
        words="a GPU of the node is in use by another process, or does not work: {line}",
        fix="to see what uses it, and its compute mode: nvidia-smi -q -d COMPUTE,PIDS there; fab doctor",
        patterns=(r"CUDA-capable device(?:s are|\(s\) is/are) busy or unavailable",),
        confirm=Fact.OTHERS_RAN,
        example="RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable",
    ),
    Signature(
        *(Kind.SCRIPT, "device-ordinal"),
        words="a rank selected a GPU that its node does not have: {line}",
        fix="one rank per GPU (--nproc-per-node); select the GPU by LOCAL_RANK, not RANK; check CUDA_VISIBLE_DEVICES",
        patterns=(
            *("invalid device ordinal", "Invalid device id", r"CUDA-capable device .* out of range"),
            r"device >= 0 && device < (?:num_gpus|static_cast)",
            r"on CUDA device \d+ but torch\.cuda\.device_count\(\) is",
        ),
        example="RuntimeError: CUDA error: invalid device ordinal",
        source="CUDA; torch 1.x also: cuda runtime error (10) : invalid device ordinal",
    ),
    Signature(
        *(Kind.SCRIPT, "duplicate-gpu"),
        words="two ranks use one GPU: {line}",
        fix=_ONE_GPU,
        patterns=(r"Duplicate GPU detected ?: .*", "Multiple processes running on same GPU"),
        example="Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 4000",
        source="NCCL init",
    ),
    Signature(
        *(Kind.SCRIPT, "nccl-versions"),
        words="the ranks run different versions of NCCL: {line}",
        fix="the same torch and nvidia-nccl on all nodes: fab doctor compares them; --env LD_LIBRARY_PATH",
        patterns=("Mismatched NCCL version detected.*", "NCCL version mismatch"),
        example="Mismatched NCCL version detected : rank 0 22005 rank 1 21805",
        source="NCCL",
    ),
    Signature(
        *(Kind.SCRIPT, "cuda-fork"),
        words="CUDA could not be initialised in this process: {line}",
        fix="start workers by spawn or forkserver, and use CUDA only in them; otherwise the driver: fab doctor",
        patterns=(
            *("Cannot re-initialize CUDA in forked subprocess", r"Cuda failure (?:\d+ )?'initialization error'"),
            "CUDA error: initialization error",
        ),
        example="NCCL WARN Cuda failure 'initialization error'",
        source="torch/cuda, NCCL",
    ),
    Signature(
        *(Kind.SCRIPT, "no-gpu"),
        words="this torch is built without CUDA: {line}",
        fix="install a torch with CUDA there (fab doctor compares them), or run on CPUs: no torch.cuda, backend gloo",
        patterns=(
            "not compiled with CUDA|built without CUDA|CPU-only (?:build|version) of",
            r"torch\._C'? has no attribute '_cuda\w+'",
            r"Attempting to deserialize object on a CUDA device but torch\.cuda\.is_available\(\) is False",
            r"not compiled with (?:NCCL|GPU|NPU|XPU) ?(?:enabled|support)?|Distributed package doesn't have NCCL",
            "CUDA is not available|Torch not linked with CUDA",
        ),
        example="AssertionError: Torch not compiled with CUDA enabled",
        source="torch/cuda",
    ),
    Signature(
        *(Kind.SCRIPT, "no-kernel-image"),
        words="this torch, or an extension of it, is not built for the GPUs of the node: {line}",
        fix="install a build for their compute capability, or build with TORCH_CUDA_ARCH_LIST",
        patterns=(
            "no kernel image is available",
            "PTX was compiled with an unsupported toolchain",
            "invalid device function",
        ),
        example="RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ),
    Signature(
        *(Kind.NODE, "cuda-start"),
        words="CUDA could not start on the node: {line}",
        fix="nvidia-smi there; after a suspend or an update its module may be gone: sudo modprobe nvidia_uvm, or "
        "reboot it; launch without that node",
        patterns=("CUDA unknown error", "CUDA driver initialization failed", r"\bError (?:304|999): "),
        confirm=Fact.ONLY_THERE,
        example="RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment",
        source="torch/cuda",
    ),
    Signature(
        *(Kind.NODE, "no-gpu"),
        words="the node has no GPU that it may use: {line}",
        fix="check CUDA_VISIBLE_DEVICES there, and the driver with fab doctor; launch without that node",
        patterns=(
            *(r"No (?:CUDA|HIP|XPU|NPU) GPUs are available", "no CUDA-capable device", "no GPUs found"),
            *("Found no NVIDIA driver", "Unexpected error from cudaGetDeviceCount"),
            *("no NPU device|No NPU", "No accelerator is available"),
            *("Failed to infer device type", "No GPU found|No GPUs? detected"),
        ),
        confirm=Fact.NO_GPU,
        example="RuntimeError: Found no NVIDIA driver on your system.",
        source="torch/cuda, ProcessGroupNCCL",
    ),
)
INSTALLATION = (
    Signature(
        *(Kind.SCRIPT, "import-error"),
        words="a library does not fit what is installed there: {line}",
        fix=_REBUILD,
        patterns=(
            *(
                "undefined symbol: .*",
                r"version `?(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+'? not found.*",
                "symbol lookup error",
            ),
            *("incompatible function arguments.*ABI", r"module compiled against (?:ABI|API) version"),
            *("binary incompatibility", "was compiled for a different version of|built against a different"),
            "numpy.dtype size changed|DSO.*already loaded|invalid ELF header|wrong ELF class",
        ),
        example="ImportError: /x/flash_attn_2_cuda.so: undefined symbol: _ZN2at4_ops5zeros4callE",
        source="ld.so",
    ),
    Signature(
        *(Kind.SCRIPT, "import-error"),
        words="a shared library is missing there: {line}",
        fix="install it there, or name its folder: --env LD_LIBRARY_PATH=...; of CUDA: a torch whose CUDA is installed",
        patterns=(
            "cannot open shared object file",
            r"Library (?:not loaded|lib\S+ is not found)",
            "Could not load library lib",
        ),
        example="OSError: libcudart.so.11.0: cannot open shared object file: No such file or directory",
        source="ld.so",
    ),
    Signature(
        *(Kind.SCRIPT, "script-missing"),
        words="the script does not exist there: {line}",
        fix="copy your code there: fab sync; or --workdir, and the script's path as it is on the nodes",
        patterns=(r"can't open file '[^']*': \[Errno 2\]", r"Error while finding module specification for '.*"),
        example="/usr/bin/python3: can't open file '/home/u/train.py': [Errno 2] No such file or directory",
        source="Python",
    ),
    Signature(
        *(Kind.SCRIPT, "import-error"),
        words="a module is missing there: {line}",
        fix=_INSTALL,
        patterns=(r"^\S*python[\d.]*: No module named \S+",),  # python -m
        example="/usr/bin/python3: No module named trainer",
        source="Python",
    ),
    Signature(
        *(Kind.SCRIPT, "headers-missing"),
        words="a compiler did not find a header file there: {line}",
        fix="install it there: Python.h is in python3-dev (python3-devel) of that interpreter, those of CUDA "
        "in its toolkit",
        patterns=(
            r"fatal error: \S+\.(?:h|hpp|cuh|hh): No such file or directory",
            r"fatal error: '\S+' file not found",
        ),
        example="/tmp/torchinductor_u/x/main.cpp:4:10: fatal error: Python.h: No such file or directory",
        source="GCC, Clang",
    ),
    Signature(
        *(Kind.SCRIPT, "tool-missing"),
        words="a program was not found there: {line}",
        fix="the environment is not activated on the node, so its folder is not on PATH: --env PATH=..., or install it",
        patterns=(
            r"^subprocess: (?:FileNotFoundError|PermissionError): .*: '(?!\.?/)[^/']+'",
            r"FileNotFoundError: \[Errno 2\].*: '(?:ninja|torchrun|nvcc|gcc|g\+\+|c\+\+|cc|git|make|cmake|accelerate)'",
            r"FileNotFoundError: \[Errno 2\].*: '(?:deepspeed|nvidia-smi|python3?|mpirun|srun|ffmpeg|hostname|which)'",
            *("Ninja is required to load C\\+\\+ extensions", r"\b[\w.+-]+: (?:command not found|not found)$"),
            "CUDA_HOME environment variable is not set|nvcc was not found",
        ),
        example="FileNotFoundError: [Errno 2] No such file or directory: 'ninja'",
        source="subprocess, torch/utils/cpp_extension, bash",
    ),
)
HUB = (
    Signature(
        *(Kind.NETWORK, "hub-rate-limit"),
        words="a hub temporarily refused requests, because all ranks send theirs at once: {line}",
        fix=f"log in for a higher limit (--env HF_TOKEN=...); {_ONE_FIRST}",
        patterns=(
            r"\b429\b.*(?:Too Many Requests|Client Error|rate)",
            "Too Many Requests",
            "[Rr]ate limit (?:exceeded|reached)",
        ),
        example="huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://hf.co",
        source="huggingface_hub",
    ),
    Signature(
        *(Kind.SCRIPT, "hub-access"),
        words="a hub refused access: {line}",
        fix="use a token of an account that may read it: --env HF_TOKEN=..., and accept the terms on the hub's page",
        patterns=(
            *(
                "GatedRepoError.*",
                "Cannot access gated repo",
                r"\b40[13] Client Error.*huggingface",
                "Invalid user token",
            ),
            *("is not a local folder and is not a valid model identifier", "RepositoryNotFoundError.*"),
            r"You are trying to access a gated repo|Invalid username or password|Repository Not Found for url",
        ),
        example="huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url https://x",
        source="huggingface_hub",
    ),
    Signature(
        *(Kind.NETWORK, "hub-offline"),
        words="a hub cannot be reached, and the files are not in the cache: {line}",
        fix="download them where there is internet access (fab sync copies a cache), and then --env HF_HUB_OFFLINE=1",
        patterns=(
            *("couldn't connect to .?https://huggingface", "LocalEntryNotFoundError.*", "OfflineModeIsEnabled.*"),
            *(
                "outgoing traffic has been disabled",
                r"Cannot reach https://huggingface\.co",
                "Couldn't reach .*hf\\.co",
            ),
            "couldn't find (?:it|them) in the cached files",
        ),
        example="OSError: We couldn't connect to 'https://huggingface.co' to load this file",
        source="transformers, huggingface_hub, datasets",
    ),
)
CLIENTS = (
    Signature(
        *(Kind.NETWORK, "service-lost"),
        words="its connection to another service failed: {line}",
        fix="check whether that service is reachable from there; let the script retry, or continue without it",
        patterns=(
            *(
                "[Cc]onnection (?:was )?(?:closed|reset|refused|aborted|broken)",
                "Broken pipe",
                r"(?:Errno|os error) (?:104|111|110|32|101|113)\b|tcp connect error|error sending request|dns error",
            ),
            *("[Tt]imed? ?out", "Max retries exceeded", "RemoteDisconnected", "ServerDisconnected", "IncompleteRead"),
            *(
                "Temporary failure in name resolution",
                "Name or service not known",
                "getaddrinfo failed",
                "Network is unreachable",
            ),
            *("closed the connection", "ConnectionError", "EndpointConnectionError"),
            r"SSL\w*Error|SSL: |certificate|EOF occurred|[Hh]andshake",
            r"\b50[0234] (?:Server Error|Bad Gateway|Service)|UNAVAILABLE",
            r"SlowDown|Throttl|Please reduce your request rate|RequestLimitExceeded|TooManyRequests|FSTimeoutError",
            r"too many (?:clients|connections)|connection to server at .* failed|is loading the dataset in memory",
            r"DeadlineExceeded|ServiceUnavailable|InternalServerError|can't be reached|could not be reached",
        ),
        spoken_by=(Speaker.CLIENT,),
        example="requests.exceptions.ConnectionError: ('Connection aborted.', ConnectionResetError(104, 'x'))",
        source="requests, urllib3, botocore, aiohttp, wandb, databases",
    ),
    Signature(
        *(Kind.SCRIPT, "service-access"),
        words="another service refused access: {line}",
        fix="its credentials must be there on every node that uses it: --env KEY=..., or its file copied with fab sync",
        patterns=(
            r"AccessDenied|\bForbidden\b|\bUnauthori[sz]ed\b|\b40[13] (?:Client Error|Forbidden|Unauthorized)",
            r"(?:Could not|Unable to) (?:locate|load) credentials|[Cc]redentials? (?:were|was|is|are) not found",
            "NoCredentials|DefaultCredentialsError|InvalidAccessKeyId|ExpiredToken|SignatureDoesNotMatch",
            "Invalid Credentials|[Nn]o API key|api_key not configured|[Ii]nvalid API key|not logged in",
            "[Pp]assword authentication failed",
        ),
        spoken_by=(Speaker.CLIENT,),
        example="botocore.exceptions.NoCredentialsError: Unable to locate credentials",
        source="botocore, google-auth, wandb, databases",
    ),
    Signature(
        *(Kind.SCRIPT, "worker-lost"),
        words="a connection to a process of its own was lost: {line}",
        fix="see what ended that process before: a data loader's worker, a manager, or another rank's failure",
        patterns=(
            "^(?:ConnectionResetError|ConnectionRefusedError|BrokenPipeError|EOFError|ConnectionAbortedError)\\b.*",
        ),
        spoken_by=(Speaker.WORKER,),
        is_symptom=True,
        example="ConnectionResetError: [Errno 104] Connection reset by peer",
        source="multiprocessing",
    ),
    Signature(
        *(Kind.SCRIPT, "worker-died"),
        words="a worker of its data loader ended: {line}",
        fix="see what the worker printed before; num_workers=0 shows its own exception",
        patterns=(
            r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:exited unexpectedly|is killed by signal: .*)",
            "Pin memory thread exited unexpectedly",
        ),
        example="RuntimeError: DataLoader worker (pid(s) 123, 124) exited unexpectedly",
        source="torch/utils/data/dataloader.py",
    ),
)
NETWORK = (
    Signature(
        *(Kind.NETWORK, "address-in-use"),
        words="an address that it wanted to listen on is in use: {line}",
        fix="omit --port for a free one; to see what uses a port: ss -ltnp there",
        patterns=(
            *("EADDRINUSE", "[Aa]ddress already in use", r"\b[Ee]rrno:? ?98\b", "port is already allocated"),
            r"listen on ip\S* and (?:specific )?port\S* fail",  # HCCL
        ),
        example="OSError: [Errno 98] Address already in use",
    ),
    Signature(
        *(Kind.NETWORK, "no-interface"),
        words="it found no network interface of that name, or no address: {line}",
        fix=_INTERFACE,
        patterns=("Unable to find (?:address for|interface for): ", "no socket interface found"),
        example="RuntimeError: Unable to find address for: eth7",
        source="gloo, NCCL",
    ),
    Signature(
        *(Kind.NETWORK, "rendezvous-timeout"),
        words="the rendezvous timed out, since not all nodes came: {line}",
        fix=_REACH,
        patterns=(
            "RendezvousTimeoutError",
            r"Timed out after \d+ seconds waiting for clients\. \d+/\d+ clients joined",
        ),
        example="torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError",
        source="torchelastic",
    ),
    Signature(
        *(Kind.NETWORK, "rendezvous-connection"),
        words="it could not reach the rendezvous: {line}",
        fix=_REACH,
        patterns=(
            *(
                "RendezvousConnectionError",
                r"client socket has (?:timed out after .* while trying to connect to|failed to connect to any)",
            ),
            r"connect\(\) timed out\. Original timeout",  # torch 1.10
        ),
        is_symptom=True,
        example="RuntimeError: connect() timed out. Original timeout was 60000 ms.",
        source="c10d",
    ),
    Signature(
        *(Kind.NETWORK, "name-unresolved"),
        words="a host name does not resolve there: {line}",
        fix="correct /etc/hosts or DNS of that node, or give --master-addr an address; fab doctor",
        patterns=(
            *("Temporary failure in name resolution", "Name or service not known", "nodename nor servname"),
            *(r"gai ?error: -\d+", r"\[Errno -[235]\]", "getaddrinfo failed", "No address associated with hostname"),
        ),
        example="socket.gaierror: [Errno -2] Name or service not known",
    ),
    Signature(
        *(Kind.NETWORK, "ib-link"),
        words="an InfiniBand or RoCE link does not work: {line}",
        fix="the adapters: ibstat, the GID index (--env NCCL_IB_GID_INDEX=3), their names (NCCL_IB_HCA); "
        "without them: --env NCCL_IB_DISABLE=1",
        patterns=(
            *(r"Call to ibv_(?!get_async_event)\w+ failed.*", r"ibv_\w+ failed with error .*"),
            *(r"(?:Transport|Receiver-not-ready) retry count exceeded on .*", r"\bUCX\b.*[Ee]ndpoint timeout.*"),  # UCX
            r"Got async event ?: .*(?:error|fatal|catastrophic).*",
            r"Got async event ?: GID table change(?:.*\n){1,20}?.*Got completion.* (?:error|status)[ =]12\b.*",
        ),
        example="Call to ibv_modify_qp failed with error Connection timed out",
        source="NCCL ibvwrap, net_ib",
    ),
    Signature(
        *(Kind.NETWORK, "nccl-timeout"),
        words="NCCL timed out waiting for another rank, in {op} number {seq}",
        fix=_HANG,
        patterns=(r"(?:operation timeout:|Work) WorkNCCL\(SeqNum=(?P<seq>\d+), OpType=(?P<op>\w+)",),
        is_symptom=True,
        example="Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=ALLREDUCE, Timeout(ms)=60)",
        source="ProcessGroupNCCL",
        since="torch 1.13",
    ),
    Signature(
        *(Kind.NETWORK, "nccl-timeout"),
        words="NCCL timed out waiting for another rank, in {op}",
        fix=_HANG,
        patterns=(r"operation timeout: WorkNCCL\(OpType=(?P<op>\w+)",),  # torch 1.9 does not count them
        is_symptom=True,
        example="Watchdog caught collective operation timeout: WorkNCCL(OpType=BROADCAST, Timeout(ms)=1)",
        source="ProcessGroupNCCL of torch 1.9 to 1.12",
    ),
    Signature(
        *(Kind.NETWORK, "nccl-stuck"),
        words="a call of NCCL or CUDA hung, according to torch's monitor: {sign}",
        fix=_HANG,
        patterns=(r"(?P<sign>watchdog got stuck for \d+ seconds|Heartbeat monitor timed out)",),
        is_symptom=True,
        example="Heartbeat monitor timed out! Process will be terminated after dumping debug info",
        source="ProcessGroupNCCL",
        since="torch 2.3",
    ),
    Signature(
        *(Kind.NETWORK, "nccl-timeout"),
        words="a collective timed out waiting for another rank: {line}",
        fix=_HANG,
        patterns=(
            r"HCCL.*(?:time-?d? ?out|times? out|timeout)|(?:Notify register|Getting socket) times out",
            r"EI000[26]\b.*",
            r"Watchdog caught collective operation timeout",
            r"Timeout at NCCL work: \d+.*|[Cc]ollective operation timeout|WorkXCCL.*tim|WorkHCCL.*[Tt]ime",
        ),
        is_symptom=True,
        example="EI0002: The wait execution of the Notify register times out. Reason: the register has not received",
        source="CANN HCCL, ProcessGroupXCCL",
    ),
    Signature(
        *(Kind.NETWORK, "gloo-timeout"),
        words="gloo timed out waiting for another rank: {line}",
        fix=_HANG,
        patterns=(r"Timed out waiting \d+ms for \w+ operation to complete", "Application timeout caused pair closure"),
        is_symptom=True,
        example="RuntimeError: Timed out waiting 1800000ms for recv operation to complete",
        source="gloo",
    ),
    Signature(
        *(Kind.NETWORK, "store-timeout"),
        words="it timed out waiting for another rank at the store of node 0: {line}",
        fix=_HANG,
        patterns=(
            *(r"wait timeout after \d+ms, keys: ", "Timeout waiting for key", "Socket Timeout"),
            "Timed out initializing process group in store based barrier",
            r"failed to get ncclUniqueId.*wait timeout|Ranks? \d[\d, ]* failed to pass monitoredBarrier",
        ),
        is_symptom=True,
        example="torch.distributed.DistStoreError: wait timeout after 4000ms, keys: /default_pg/0//cpu//0/0",
        source="c10d",
    ),
    Signature(
        *(Kind.NETWORK, "no-route"),
        words="NCCL chose an address of Docker's own bridge, which no other node can reach: {line}",
        fix="exclude it: --env NCCL_SOCKET_IFNAME=^docker0,lo (gloo: GLOO_SOCKET_IFNAME=eth0); fab network",
        patterns=(
            r"172\.(?:1[7-9]|2\d|3[01])\.\d+\.\d+\S* failed ?: (?:No route to host|Connection (?:refused|timed out))",
        ),
        spoken_by=_PEERS,
        example="socketStartConnect: Connect to 172.17.0.1<51215> failed : No route to host",
        source="NCCL",
    ),
    Signature(
        *(Kind.NETWORK, "no-route"),
        words="an address of another node cannot be reached: {line}",
        fix=f"a firewall, or the wrong interface: {_INTERFACE}",
        patterns=("No route to host", "Network is unreachable"),
        spoken_by=_PEERS,
        example="socketStartConnect: Connect to 10.0.0.5<51215> failed : No route to host",
        source="NCCL, gloo",
    ),
    # NCCL reports most of its errors under one of three names, also the death of another rank.
    Signature(
        *(Kind.NETWORK, "connection-lost"),
        words="its connection to another rank was lost: {line}",
        fix=_PEER,
        patterns=(
            *(
                "ncclRemoteError",
                "remote process exited",
                "Connection closed by remote peer",
                "Software caused connection abort",
            ),
            r"\bsocket\w+: (?:Connect to|Call to \w+ (?:from|to)) .* failed",
            *("Net : Call to .* failed", r"NET/IB : Got completion from peer .*status=(?:12\b|IBV_WC_RETRY_EXC_ERR)"),
        ),
        is_symptom=True,
        example="ncclRemoteError: A call failed possibly due to a network error or a remote process exiting.",
        source="NCCL",
    ),
    Signature(
        *(Kind.NETWORK, "connection-lost"),
        words="another rank ended, or left the group: {line}",
        fix=_PEER,
        patterns=(
            "Horovod has been shut down.*",
            "MPI_ERR_PROC_FAILED.*|MPI_ERR_REVOKED.*",
            "peer has (?:failed|exited).*",
        ),
        is_symptom=True,
        example="horovod.common.exceptions.HorovodInternalError: Horovod has been shut down.",
        source="Horovod, MPI",
    ),
    Signature(
        *(Kind.NETWORK, "nccl-aborted"),
        words="its communicator was aborted after a failure elsewhere: {line}",
        fix=_PEER,
        patterns=(
            "(?:NCCL|RCCL|HCCL|XCCL) communicator (?:\\S+ )?(?:was|has been) aborted",
            "comm(?:unicator)? .*was aborted",
        ),
        is_symptom=True,
        example="RuntimeError: NCCL communicator was aborted on rank 1.",
        source="ProcessGroupNCCL",
    ),
    Signature(
        *(Kind.NETWORK, "nccl-error"),
        words="NCCL failed: {line}",
        fix=f"launch again with --env NCCL_DEBUG=INFO; {_INTERFACE}",
        patterns=(
            r"nccl(?:SystemError|InternalError|InvalidUsage|UnhandledCudaError)\b.*(?:\n.*Last error:.*\n.*)?",
            r"ncclInvalidArgument\b.*(?:\n.*Last error:.*\n.*)?",
            r"NCCL error in: .*|\bnccl[A-Z]\w+ failed: .*|unhandled (?:system|cuda) error",
        ),
        is_symptom=True,  # most of them only mean that another rank ended
        example="ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
        source="NCCL",
    ),
    Signature(
        *(Kind.NETWORK, "mpi-error"),
        words="MPI failed: {line}",
        fix="see its own words; the provider and the interface: --env FI_PROVIDER=tcp (libfabric), UCX_TLS=tcp; "
        "fab doctor",
        patterns=(
            r"Fatal error in (?:internal_)?P?MPI_\w+: .*(?:\n.*){0,12}?(?:[Oo]ther MPI error[;,] .*|failed .*)",
            r"Fatal error in (?:internal_)?P?MPI_\w+: .*",
            r"PML add procs failed|MPI_ERR_(?:INTERN|OTHER|UNKNOWN)\b.*",
            "at least one pair of MPI processes .* unable to reach",
        ),
        is_symptom=True,
        example="Abort(1091215) on node 1 (rank 1 in comm 0): Fatal error in PMPI_Init: Other MPI error, error stack:",
        source="MPICH, Intel MPI, Open MPI",
    ),
    Signature(
        *(Kind.NETWORK, "nvshmem-error"),
        words="NVSHMEM failed: {line}",
        fix=f"launch again with --env NVSHMEM_DEBUG=INFO; {_INTERFACE}",
        patterns=(r"/nvshmem/\S+:\d+: non-zero status: .*", r"\bnvshmem initialization failed\b.*"),
        is_symptom=True,
        example="/x/nvshmem/src/host/init/init.cu:998: non-zero status: 7 building transport map failed",
        source="NVSHMEM",
    ),
    Signature(
        *(Kind.NETWORK, "hccl-error"),
        words="HCCL failed: {line}",
        fix="the plog of that node (~/ascend/log), and hccn_tool -i 0 -link -g there",
        patterns=(r"\bHCCL (?:function )?error.*", r"\bHccl\w+.*(?:failed|error).*", r"\bE[EHIJ]\d{4}: .*"),
        is_symptom=True,
        example="RuntimeError: createHCCLComm: HCCL function error: HcclCommInitRootInfo, error code is 4",
        source="torch_npu",
    ),
    Signature(
        *(Kind.NETWORK, "connection-lost"),
        words="its connection to another rank was lost: {line}",
        fix=_PEER,
        patterns=(
            *("connectFullMesh", "DistNetworkError", r"recvValue\w* failed", "[Ff]ailed to recv, got 0 bytes"),
            *("RendezvousClosedError", "Connection was likely closed"),
        ),
        is_symptom=True,
        example="[c10d] recvValueWithTimeout failed on SocketImpl(fd=3): Failed to recv, got 0 bytes.",
        source="c10d",
    ),
    Signature(
        *(Kind.NETWORK, "connection-lost"),
        words="its connection to another rank was lost: {line}",
        fix=_PEER,
        patterns=(
            *(
                "Connection (?:closed|reset) by (?:remote )?peer",
                "Connection refused",
                "Broken pipe",
                r"Errno (?:104|111|32)\b",
            ),
            *("[Cc]onnection (?:was )?(?:closed|reset|lost)", "unexpected end of file"),
        ),
        spoken_by=_PEERS,
        is_symptom=True,
        example="RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:24750",
        source="gloo, c10d",
    ),
    Signature(
        *(Kind.NETWORK, "connection-lost"),
        words="it could not connect to another rank: {line}",
        fix=_PEER,
        patterns=("Resource temporarily unavailable", r"connect\(\) timed out"),
        spoken_by=_PEERS,
        is_symptom=True,
        example="RuntimeError: connect: Resource temporarily unavailable (this error originated at tensorpipe)",
        source="c10d, tensorpipe",
    ),
)
OTHERS = (
    Signature(
        *(Kind.MEMORY, "memory-limit"),
        words="the scheduler's memory limit ended it: {line}",
        fix="ask the scheduler for more memory, or use less per rank (data loader workers, caches)",
        patterns=(
            r"TERM_(?:MEMLIMIT|SWAP)\b",
            r"PBS: job killed: (?:p?v?mem|pvmem) .*exceeded",
            r"[Jj]ob (?:\S+ )?exceeded (?:its |the )?(?:hard |soft )?(?:memory|mem|vmem|h_vmem|s_vmem)\b.*limit",
            r"systemd-oomd\b.*[Kk]illed .* (?:due to|because of)",
        ),
        spoken_by=(Speaker.SYSTEM,),
        example="TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.",
        source="LSF, PBS, Grid Engine, systemd",
    ),
    Signature(
        *(Kind.KILLED, "time-limit"),
        words="the scheduler's time limit ended it: {line}",
        fix="request more --time, and resume from a checkpoint",
        patterns=(
            "CANCELLED AT .* DUE TO TIME LIMIT",
            r"PBS: job killed: (?:walltime|cput) .*exceeded",
            r"TERM_(?:RUNLIMIT|CPULIMIT|DEADLINE|WINDOW)\b",
            r"job \S+ exceeded (?:hard|soft) wallclock time|[Jj]ob exceeded (?:its )?(?:wallclock|walltime) limit",
        ),
        example="slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-01-02T10:00:00 DUE TO TIME LIMIT ***",
        source="Slurm, PBS, LSF, Grid Engine",
    ),
    Signature(
        *(Kind.KILLED, "preempted"),
        words="the scheduler deallocated its nodes: {line}",
        fix="launch it again, and resume from a checkpoint",
        patterns=(
            "CANCELLED AT .* DUE TO (?:PREEMPTION|JOB REQUEUE|NODE FAILURE)",
            r"TERM_(?:PREEMPT|REQUEUE_\w+|LOAD)\b",
        ),
        example="slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-02T10:00:00 DUE TO PREEMPTION ***",
        source="Slurm",
    ),
    Signature(
        *(Kind.KILLED, "cancelled"),
        words="Slurm cancelled its step: {line}",
        fix="find out who did it, or which task failed before: sacct -j, and the logs of the other ranks",
        patterns=(r"\*\*\* (?:STEP|JOB) \S+ ON \S+ CANCELLED AT \S+ \*\*\*",),
        is_symptom=True,
        example="slurmstepd: error: *** STEP 88.0 ON n1 CANCELLED AT 2024-05-01T10:00:00 ***",
        source="Slurm",
    ),
    Signature(
        *(Kind.SCRIPT, "import-error"),
        words="an import failed: {line}",
        fix=_INSTALL,
        patterns=("^(?:ModuleNotFoundError|ImportError): .*",),
        example="ModuleNotFoundError: No module named 'flash_attn'",
        source="Python",
    ),
    Signature(
        *(Kind.NETWORK, "peer-lost"),
        words="a connection of the script was lost: {line}",
        fix="see what ended the other end",
        patterns=("^(?:ConnectionResetError|BrokenPipeError|ConnectionAbortedError|ConnectionRefusedError)\\b.*",),
        spoken_by=(Speaker.SCRIPT,),
        is_symptom=True,
        example="BrokenPipeError: [Errno 32] Broken pipe",
        source="Python",
    ),
    Signature(
        *(Kind.KILLED, "terminated"),
        words="it was asked to end: {line}",
        fix="ask who did it: an administrator, a script, a scheduler that wants the node back",
        patterns=(r"^(?:\w+\.)*SIGTERMException\b.*", r"^(?:\w+\.)*SignalException: Process \d+ got signal: \d+"),
        example="lightning.pytorch.utilities.exceptions.SIGTERMException",
        source="Lightning, torchelastic",
    ),
    Signature(
        *(Kind.MEMORY, "memory"),
        words="memory ran out: {line}",
        fix=f"{_SMALLER}; {_LESS}",
        patterns=(r"\b[Oo]ut[ -]of[ -](?:(?:device|host|system|CPU|GPU|pinned) )?[Mm]emory\b", "OUT_OF_RESOURCES"),
        example="RuntimeError: HSA_STATUS_ERROR_OUT_OF_RESOURCES: The runtime failed to allocate resources",
        source="any library",
    ),
    Signature(
        *(Kind.KILLED, "interrupted"),
        words="it was interrupted: {line}",
        fix="SIGINT was sent to it, or Ctrl-C was typed",
        patterns=("^KeyboardInterrupt",),
        is_symptom=True,
        example="KeyboardInterrupt",
        source="Python",
    ),
)
ASSERT = (
    Signature(
        *(Kind.SCRIPT, "device-assert"),
        words="a kernel of the script failed on the GPU: {line}",
        fix="launch again with --env CUDA_LAUNCH_BLOCKING=1 to see which one",
        patterns=(
            r"(?:CUDA|HIP) error: (?:device-side assert triggered|an illegal memory access|misaligned address)",
            r"(?:CUDA|HIP) error: (?:the launch timed out|unspecified launch failure|hardware stack error)",
            r"an illegal instruction was encountered|Assertion `.*` failed\.$|cuda runtime error \((?:59|77|710|700)\)",
        ),
        example="RuntimeError: CUDA error: device-side assert triggered",
        source="CUDA",
    ),
    Signature(
        *(Kind.SCRIPT, "device-assert"),
        words="a kernel of the script failed on an AMD GPU, or hung: {line}",
        fix="launch again with --env AMD_SERIALIZE_KERNEL=3 to see which one; if it stays with one node: fab doctor",
        patterns=(
            r"HW Exception by GPU node-\d+ .*",
            r"Memory access fault by GPU node-\d+ .*",
            r"HIP failure: '(?!out of memory).*",
        ),
        example="HW Exception by GPU node-9 (Agent handle: 0x631351bb5a20) reason :GPU Hang",
        source="ROCm runtime, RCCL",
    ),
    Signature(
        *(Kind.SCRIPT, "collective-mismatch"),
        words="the ranks called different collectives, or with tensors of different sizes: {line}",
        fix="the same collectives in the same order, with equal sizes, on every rank: "
        "--env TORCH_DISTRIBUTED_DEBUG=DETAIL names them",
        patterns=(
            r"op\.preamble\.length <= op\.nbytes.*",
            "Detected mismatch between collectives on ranks.*",
            r"Mismatch between collective operation types.*|[Mm]ismatched collective.*",
        ),
        example="[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 256000 vs 128000",
        source="gloo, ProcessGroupWrapper",
    ),
)
# A failed CUDA kernel also breaks connections in the same log; a failed import in it may have been caught.
SIGNATURES: tuple[Signature, ...] = (
    *MEMORY,
    *STORAGE,
    *DEVICES,
    *ASSERT,
    *HUB,
    *INSTALLATION,
    *CLIENTS,
    *NETWORK,
    *OTHERS,
)
