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
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/logs /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/hostfile <<'FILE'
node1 slots=2
node2 slots=2
FILE
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
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python -m deepspeed.launcher.runner \
  --no_ssh \
  --node_rank 0 \
  --hostfile /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/hostfile \
  --master_addr node1 \
  --master_port 5001 \
  --enable_each_rank_log /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/logs \
  --no_local_rank train.py \
  --name 'it'"'"'s $5' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node0 -n agent bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-0/agent/run.sh
TORCHFAB

# node 1: node2
ssh -- node2 bash -s <<'TORCHFAB'
umask 077
mkdir -p /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/logs /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent
cat > /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/hostfile <<'FILE'
node1 slots=2
node2 slots=2
FILE
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
export PATH=/venv/bin:"$PATH"
exec /venv/bin/python -m deepspeed.launcher.runner \
  --no_ssh \
  --node_rank 1 \
  --hostfile /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/hostfile \
  --master_addr node1 \
  --master_port 5001 \
  --enable_each_rank_log /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/logs \
  --no_local_rank train.py \
  --name 'it'"'"'s $5' > >(tee -a /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/output.log) 2>&1 < /dev/null
RUN
tmux -L torchfab -f /dev/null new-session -d -s gpt2-node1 -n agent bash /scratch/torchfab/jobs/gpt2-0a1b2c3d/node-1/agent/run.sh
TORCHFAB