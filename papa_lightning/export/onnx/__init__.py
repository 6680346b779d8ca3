"""ONNX files of swapped encoders, written for onnxruntime on a CPU.

``write`` has what users call, ``quantization`` files of 8 bits. A graph of torch is made with the operators of
``attention``, and then faster by ``rewriting``: by ``layout`` (shapes and transposes) and ``heads`` (their order, moved
into weights), both through ``editing``. Only ``write`` and ``quantization`` can be imported without the extra ``onnx``.
"""
