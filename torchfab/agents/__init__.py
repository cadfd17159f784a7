"""`torchfab mcp`: commands as tools for programs that speak the Model Context Protocol, such as coding agents.

torchfab/agents/tools.py     the tools: names, parameters, and the command line of a call; pure
torchfab/agents/server.py    the server on stdin and stdout (extra `mcp`), which runs each call as a command
"""
