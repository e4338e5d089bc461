from ext.crypto import EngineHandle

class MbEngine(EngineHandle):
    def __init__(self) -> None: ...
