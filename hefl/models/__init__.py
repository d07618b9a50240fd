"""What is trained: the trainer's interface, trainers for PyTorch and scikit-learn, and a model's arrays and files."""
