"""The parts of `pretrain`: where images come from, and what each corruption network is trained for."""
