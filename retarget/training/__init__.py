"""Training on PyTorch Lightning: cloning, DQN and PPO; and what they train on."""
