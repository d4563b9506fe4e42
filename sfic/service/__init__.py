"""What the three services share: settings, the gRPC server around them, client channels, SQLite.

Nothing here knows a face, a layer or a message of `sfic.v1`; `access` alone names its methods. A
service builds on this package and never on another service.
"""
