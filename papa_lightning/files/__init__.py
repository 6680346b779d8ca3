"""Files: written whole or not at all, by one process at a time, and checked for damage.

``writing`` has everything that writes or asks whether it may write, ``locking`` the claims of outputs, ``checked`` JSON
with a checksum. Imports only errors, text and checks. Another file format with a checksum belongs in ``checked``.
"""
