"""koqa: Korean question answering by RLHF; one module here is one DVC stage."""
