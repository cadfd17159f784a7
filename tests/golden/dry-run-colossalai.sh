# job: gpt2
# nodes: 2 (node[1-2])
# ranks: 4 (2 per node)
# master: node1:5001
# workdir: /project
# python: /venv/bin/python
# a note

# node 1: node2
ssh -- node2 bash -s <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/logs /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/errors /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/bin
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/relay.py <<'FILE'
(torchfab/remote/shims/relay.py)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/rank.py <<'FILE'
(torchfab/remote/shims/rank.py)
FILE
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
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/bin/torchrun <<'FILE'
#!/bin/sh
exec /venv/bin/python /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/torchrun_agent.py "$@"
FILE
chmod 700 /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/bin/torchrun
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export NCCL_DEBUG=INFO
export MASTER_ADDR=node1
export MASTER_PORT=5001
export LOCAL_WORLD_SIZE=2
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=1
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/errors/error.json
export TORCHFAB_FOLDER=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent
export PATH=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/bin:/venv/bin:"$PATH"
exec /venv/bin/python -I -S /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/relay.py await > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node1 -n agent bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/run.sh
TORCHFAB

# node 0: node1
ssh -- node1 bash -s <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/logs /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/errors /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/bin
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/relay.py <<'FILE'
(torchfab/remote/shims/relay.py)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/rank.py <<'FILE'
(torchfab/remote/shims/rank.py)
FILE
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
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/bin/torchrun <<'FILE'
#!/bin/sh
exec /venv/bin/python /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/torchrun_agent.py "$@"
FILE
chmod 700 /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/bin/torchrun
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export NCCL_DEBUG=INFO
export MASTER_ADDR=node1
export MASTER_PORT=5001
export LOCAL_WORLD_SIZE=2
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=0
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/errors/error.json
export TORCHFAB_FOLDER=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent
export PATH=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/bin:/venv/bin:"$PATH"
exec /venv/bin/python -I -S /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/relay.py await > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/output.log) 2>&1 < /dev/null
RUN
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/bin
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/hostfile <<'FILE'
node1
node2
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/colossalai_run.py <<'FILE'
(torchfab/remote/shims/colossalai_run.py)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/head.py <<'FILE'
(torchfab/remote/shims/head.py)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/rsh.py <<'FILE'
(torchfab/remote/shims/rsh.py)
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/nodes.json <<'FILE'
{
 "nodes": {
  "node1": {
   "ssh": [],
   "gate": [
    "env",
    "TORCHFAB_JOB_ID=gpt2-0a1b2c3d",
    "TORCHFAB_NODE_RANK=0",
    "/venv/bin/python",
    "-I",
    "-S",
    "/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/relay.py",
    "deliver"
   ]
  },
  "node2": {
   "ssh": [
    "ssh",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=15",
    "--",
    "node2"
   ],
   "gate": [
    "env",
    "TORCHFAB_JOB_ID=gpt2-0a1b2c3d",
    "TORCHFAB_NODE_RANK=1",
    "/venv/bin/python",
    "-I",
    "-S",
    "/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/relay.py",
    "deliver"
   ]
  }
 },
 "fail_fast": true
}
FILE
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/bin/ssh <<'FILE'
#!/bin/sh
exec /venv/bin/python -I -S /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/rsh.py "$@"
FILE
chmod 700 /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/bin/ssh
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=0
export PATH=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/bin:/venv/bin:"$PATH"
exec /venv/bin/python -I -S /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/head.py /venv/bin/python /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/colossalai_run.py run \
  --hostfile /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/hostfile \
  --nproc_per_node 2 \
  --master_addr node1 \
  --master_port 5001 \
  --extra_launch_args 'redirects=3,log_dir="$TORCHFAB_FOLDER/logs"' \
  -- train.py \
  --name ''"'"'it'"'"'"'"'"'"'"'"'s $5'"'"'' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node0 -n agent bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/run.sh
tmux -L torchfab -f /dev/null new-window -d -t =gpt2-node0: -n head bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/head/run.sh
TORCHFAB