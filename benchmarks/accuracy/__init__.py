"""Does it train as well as the paper says?"""
