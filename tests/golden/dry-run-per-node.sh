# job: gpt2
# nodes: 2 (node[1-2])
# ranks: 4 (2 per node)
# master: node1:5001
# workdir: /project
# python: /venv/bin/python
# a note

# node 0: node1
ssh -- node1 bash -s <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/logs /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/errors /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/torchrun_agent.py <<'FILE'
import os, signal, sys
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
ranks = getattr(api, "SubprocessContext", None)
end = getattr(ranks, "_close", None)
def end_after_supervisor(*args, **options):
    os.kill(os.getpid(), signal.SIGURG)
    end(*args, **options)
if end:
    ranks._close = end_after_supervisor
sys.exit(run.main())
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/become_rank.py <<'FILE'
import os, sys
os.dup2(1, 2)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
words = [*(os.environ.get(name, "-") for name in names), str(os.getpid())]
path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
folder = os.path.normpath(os.path.join(path, *[os.pardir] * 4))
try:
    with open(os.path.join(folder, "ranks") if path else os.devnull, "a") as file:
        file.write(" ".join(words) + chr(10))
except OSError:
    pass
command = [sys.executable, *sys.argv[1:]] if sys.argv[1] == "-u" else sys.argv[1:]
os.execvp(command[0], command)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export NCCL_DEBUG=INFO
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/errors/error.json
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=0
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/torchrun_agent.py \
  --rdzv-id gpt2-0a1b2c3d \
  --rdzv-backend c10d \
  --rdzv-endpoint node1:5001 \
  --rdzv-conf is_host=1,join_timeout=600,read_timeout=600 \
  --local-addr node1 \
  --nnodes 2 \
  --nproc-per-node 2 \
  --max-restarts 0 \
  --redirects 3 \
  --log-dir /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/logs \
  --no-python /venv/bin/python -I -S '-cexec(open('"'"'/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/become_rank.py'"'"').read())' -u train.py \
  --name 'it'"'"'s $5' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node0 -n agent bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/run.sh
TORCHFAB

# node 1: node2
ssh -- node2 bash -s <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/logs /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/errors /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/torchrun_agent.py <<'FILE'
import os, signal, sys
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
ranks = getattr(api, "SubprocessContext", None)
end = getattr(ranks, "_close", None)
def end_after_supervisor(*args, **options):
    os.kill(os.getpid(), signal.SIGURG)
    end(*args, **options)
if end:
    ranks._close = end_after_supervisor
sys.exit(run.main())
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/become_rank.py <<'FILE'
import os, sys
os.dup2(1, 2)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
words = [*(os.environ.get(name, "-") for name in names), str(os.getpid())]
path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
folder = os.path.normpath(os.path.join(path, *[os.pardir] * 4))
try:
    with open(os.path.join(folder, "ranks") if path else os.devnull, "a") as file:
        file.write(" ".join(words) + chr(10))
except OSError:
    pass
command = [sys.executable, *sys.argv[1:]] if sys.argv[1] == "-u" else sys.argv[1:]
os.execvp(command[0], command)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export NCCL_DEBUG=INFO
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/errors/error.json
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=1
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/torchrun_agent.py \
  --rdzv-id gpt2-0a1b2c3d \
  --rdzv-backend c10d \
  --rdzv-endpoint node1:5001 \
  --rdzv-conf is_host=0,join_timeout=600,read_timeout=600 \
  --local-addr node2 \
  --nnodes 2 \
  --nproc-per-node 2 \
  --max-restarts 0 \
  --redirects 3 \
  --log-dir /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/logs \
  --no-python /venv/bin/python -I -S '-cexec(open('"'"'/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/become_rank.py'"'"').read())' -u train.py \
  --name 'it'"'"'s $5' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node1 -n agent bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/run.sh
TORCHFAB