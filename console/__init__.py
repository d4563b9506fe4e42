"""The operators' console: a page to look at faces, and to pull them in full quality.

A thin client of the services' gRPC interfaces: it keeps no face, no picture and no result, and it
asks for everything with the rights of the person who is looking.
"""
