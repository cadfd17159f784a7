# job: gpt2
# nodes: 2 (node[1-2])
# ranks: 3
# master: node1:5001
# workdir: /project
# python: /venv/bin/python

# node 0: node1
{
printf 'export HF_TOKEN=%q\n' "${HF_TOKEN?}"
cat <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/errors
: > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/run.sh
printf 'export HF_TOKEN=%q\n' "$HF_TOKEN" >> /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/run.sh
cat >> /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export CUDA_VISIBLE_DEVICES=0,3
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=0
export RANK=0
export LOCAL_RANK=0
export WORLD_SIZE=3
export LOCAL_WORLD_SIZE=2
export MASTER_ADDR=node1
export MASTER_PORT=5001
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/errors/error.json
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python train.py 'two
lines' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/output.log) 2>&1 < /dev/null
RUN
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/errors
: > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/run.sh
printf 'export HF_TOKEN=%q\n' "$HF_TOKEN" >> /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/run.sh
cat >> /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export CUDA_VISIBLE_DEVICES=0,3
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=0
export RANK=1
export LOCAL_RANK=1
export WORLD_SIZE=3
export LOCAL_WORLD_SIZE=2
export MASTER_ADDR=node1
export MASTER_PORT=5001
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/errors/error.json
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python train.py 'two
lines' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node0 -n rank-0 bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-0/run.sh
tmux -L torchfab -f /dev/null new-window -d -t =gpt2-node0: -n rank-1 bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/rank-1/run.sh
TORCHFAB
} | ssh -- node1 bash -s

# node 1: node2
{
printf 'export HF_TOKEN=%q\n' "${HF_TOKEN?}"
cat <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/errors
: > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/run.sh
printf 'export HF_TOKEN=%q\n' "$HF_TOKEN" >> /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/run.sh
cat >> /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/run.sh <<'RUN'
cd /project || exit
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export TORCHFAB_JOB_ID=gpt2-0a1b2c3d
export TORCHFAB_NODE_RANK=1
export RANK=2
export LOCAL_RANK=0
export WORLD_SIZE=3
export LOCAL_WORLD_SIZE=1
export MASTER_ADDR=node1
export MASTER_PORT=5001
export TORCHELASTIC_ERROR_FILE=/scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/errors/error.json
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python train.py 'two
lines' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node1 -n rank-2 bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/rank-2/run.sh
TORCHFAB
} | ssh -- node2 bash -s